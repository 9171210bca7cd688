"""Start, join, check and monitor a Ray cluster."""
