"""Ends: what a client and a server are made of, from their first use to their close."""
