"""Carry out a plan: checks before it, the controller, trial events, Ray Tune, the worker."""
