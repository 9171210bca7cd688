"""What a terminal shows: progress, status, the end of a run, listings."""
