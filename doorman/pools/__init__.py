"""Pools: proven processes that serve many calls, as futures, as an executor, or behind a broker."""
