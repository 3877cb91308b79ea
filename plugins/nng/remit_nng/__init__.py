"""Remit over nng."""
