"""Every method on the same logs, with the true value beside each estimate."""
