"""Deterministic simulator: real clients and servers on a simulated network and clock, with seeded faults."""
