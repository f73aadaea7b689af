"""Benchmarks of speed and memory: `make bench`. Compare ratios within one run, not rates across machines."""
