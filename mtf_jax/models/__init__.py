"""The multi-task score model and the tables distilled from it."""
