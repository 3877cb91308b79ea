"""Simulation: the real endpoints on a network of its own, in its own time: seeded, lossy, and judged."""
