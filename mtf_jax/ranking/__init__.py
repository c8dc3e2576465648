"""The multi-task score model, its features and metrics."""
