"""Each kind of event loop, and a place for a manager."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

import pytest
from loops import Runner, loops
from waiting import DEADLINE


@pytest.fixture(params=loops())
def run(request: pytest.FixtureRequest) -> Runner:
    """Run a coroutine on each kind of loop, and not for ever."""

    async def bounded(coroutine: Awaitable[Any]) -> Any:
        async with asyncio.timeout(2 * DEADLINE):
            return await coroutine

    return lambda coroutine: request.param(bounded(coroutine))


@pytest.fixture
def place(short_path) -> str:
    return f"unix://{short_path}/m"
