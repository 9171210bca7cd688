"""Options and signal handling shared by the search commands."""
