"""Start, join, check and watch a Ray cluster."""
