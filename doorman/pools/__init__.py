"""Pools of proven processes that run calls: as futures, as an executor, or behind a broker."""
