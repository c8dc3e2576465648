"""Whole questions, each a folder."""
