"""MTF-GAUC on the held-out days of a real log."""
