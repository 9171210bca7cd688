"""Benchmarks, run as `python -m scripts.bench.NAME`."""
