"""The books of a study: what was asked, every epoch, and how each trial ended."""
