"""Launchers: small files that parse flags and call mtf_jax."""
