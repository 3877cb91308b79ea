"""Mutants of the protocol: each is broken in one place, and the simulator must detect it."""

from __future__ import annotations

import functools
import inspect
from typing import Any, TypeAlias

import pytest

Mutation: TypeAlias = tuple[Any, str, Any]
"""Owner, name and replacement of an attribute."""


def apply(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    """Replace an attribute. A function with a parameter ``original`` gets the function that it replaces."""
    owner, name, replacement = mutation
    if inspect.isfunction(replacement) and "original" in inspect.signature(replacement).parameters:
        replacement = functools.partialmethod(replacement, original=getattr(owner, name))
    monkeypatch.setattr(owner, name, replacement)
