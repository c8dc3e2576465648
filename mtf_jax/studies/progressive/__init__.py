"""Progressive training: explore, train, redeploy, round after round."""
