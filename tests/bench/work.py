"""Work: what each task does. In a module of its own, since each fresh process imports it."""

from __future__ import annotations


def double(number: int) -> int:
    """Return twice the number."""
    return number * 2
