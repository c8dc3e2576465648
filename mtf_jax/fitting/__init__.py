"""From a log to a world; the synthetic world's constants."""
