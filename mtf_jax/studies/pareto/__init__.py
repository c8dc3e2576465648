"""A Pareto front of two outcomes from one run."""
