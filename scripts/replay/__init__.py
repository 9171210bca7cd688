"""Recorded learning curves, and searches that are replayed against them without training."""
