"""Loops: the kinds of event loops on which the same has to work."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest

__all__ = ["Runner", "loops"]

Runner = Callable[[Awaitable[Any]], Any]
"""Runs a coroutine on a loop of its own."""


def loops() -> Iterator[Any]:
    yield pytest.param(asyncio.run, id="asyncio")
    if sys.platform == "linux":
        import uvloop

        yield pytest.param(uvloop.run, id="uvloop")
