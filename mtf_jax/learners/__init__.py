"""Learners: one file per algorithm, each an `(init, update, act)` triple."""
