"""Fault injection: `python -m scripts.chaos --kills 20`."""
