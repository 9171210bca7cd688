"""Optuna: samplers, pruners, and the importance of settings."""
