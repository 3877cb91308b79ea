"""A Redis that a test may stop, freeze and kill."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from redis_server import Redis


@pytest.fixture
def absent(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that has not been started yet."""
    server = Redis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def redis(absent: Redis) -> Redis:
    absent.start()
    return absent
