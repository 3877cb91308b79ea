"""Event loops: the kinds on which the same has to work, and waits with a deadline."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import pytest
from waiting import DEADLINE

__all__ = ["Runner", "loops", "run", "until"]

Runner = Callable[[Awaitable[Any]], Any]
"""Runs a coroutine on a loop of its own."""


def loops() -> Iterator[Any]:
    yield pytest.param(asyncio.run, id="asyncio")
    if sys.platform == "linux":
        import uvloop

        yield pytest.param(uvloop.run, id="uvloop")


def run(main: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(DEADLINE):
            await main()

    asyncio.run(bounded())


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not fact():
            await asyncio.sleep(0.002)
