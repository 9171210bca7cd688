"""Importance of the searched settings."""
