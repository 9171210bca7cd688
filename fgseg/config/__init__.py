"""Every setting of one model: its form, its reading from files and flags, its errors."""
