"""Benchmarks: ours, every peer and the limit on the same work, as ratios within one run."""
