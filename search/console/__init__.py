"""Print on the terminal: progress, status, the summary of a run, listings."""
