"""Doorman: a process manager on Remit."""
