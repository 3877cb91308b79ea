"""Remit over Redis pub/sub."""
