"""Remit over ZeroMQ."""
