"""Successors of the paper's method, learnt from one log and judged by A/B."""
