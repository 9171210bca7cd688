"""Programs of the repository, run as `python -m scripts.NAME` from its top folder; not installed."""
