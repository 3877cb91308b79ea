"""Work: what each task does. In a module of its own, since each fresh process imports it."""

from __future__ import annotations

import sys


def double(number: int) -> int:
    """Return twice the number."""
    return number * 2


def loaded(module: str) -> bool:
    """Tell whether a module is there without having been imported here."""
    return module in sys.modules
