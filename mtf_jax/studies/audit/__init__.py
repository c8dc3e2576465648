"""What must be believed of a world before anything is trained on it."""
