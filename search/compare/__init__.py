"""Families side by side: repeated over seeds, judged on the test split."""
