"""Training: the scan loop, checkpoints and metrics."""
