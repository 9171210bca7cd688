"""Inject faults into a search: `python -m scripts.chaos --kills 20`."""
