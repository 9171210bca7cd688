"""Procedural street scenes with exact labels, for the quickstart and the tests."""
