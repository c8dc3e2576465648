"""Readers of logs and the datasets made of them."""
