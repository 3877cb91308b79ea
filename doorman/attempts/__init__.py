"""Attempts: one try of a task, from the order of its process to its end, as its manager sees it."""
