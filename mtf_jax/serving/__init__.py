"""A policy as it leaves the training process: export, load, requests."""
