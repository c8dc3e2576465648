"""Logged sessions and real data."""
