"""Launchers: each parses flags and calls `mtf_jax`."""
