"""Programs of a checkout, run as `python -m scripts.NAME` from its top folder; never installed."""
