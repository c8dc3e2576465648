"""Judging policies: on real held-out days, against true values, by segment."""
