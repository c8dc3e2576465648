"""Logged sessions and where they come from."""
