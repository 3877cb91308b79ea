"""Forks: what a forked child must put in order before anything else runs in it."""

from __future__ import annotations

import os
import weakref
from typing import Protocol

__all__ = ["Inherited", "tell_forks"]


class Inherited(Protocol):
    """What a forked child inherits and must not use as it is."""

    def after_fork(self) -> None:
        """Called once in each forked child, in no order that could be relied on."""
        ...


# Plain references, no WeakSet: that is Python code, and whatever a child runs at first the kernel must copy for it.
_living: set[weakref.ref[Inherited]] = set()


def tell_forks(thing: Inherited) -> None:
    """Have ``thing.after_fork()`` called in every forked child, for as long as it lives."""
    _living.add(weakref.ref(thing, _living.discard))


def _after_fork_in_child() -> None:
    for reference in tuple(_living):
        thing = reference()
        if thing is not None:
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
