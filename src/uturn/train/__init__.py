"""Training victims."""
