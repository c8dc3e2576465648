"""Stateless kernels of one request, session or transition; the caller vmaps."""
