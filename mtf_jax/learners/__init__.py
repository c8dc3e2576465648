"""Learners: one file per algorithm, each a `base.Learner`."""
