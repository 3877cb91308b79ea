"""Benchmarks: ratios within one run, equal work in both columns, medians of interleaved repetitions."""
