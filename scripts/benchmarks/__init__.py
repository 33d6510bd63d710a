"""Benchmarks behind `python -m scripts.benchmark`."""
