"""Files on a disk or in a bucket."""
