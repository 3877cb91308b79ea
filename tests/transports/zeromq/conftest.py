"""Places over ZeroMQ, and a stranger's sockets."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remit import Location

if TYPE_CHECKING:
    from zmq_strangers import Raw

_names = itertools.count(1)


@pytest.fixture(params=["zmq+tcp", "zmq+ipc"])
def place(request: pytest.FixtureRequest, short_path: Path) -> Location:
    return Location("zmq+tcp://127.0.0.1:0" if request.param == "zmq+tcp" else f"zmq+ipc://{short_path}/s.sock")


@pytest.fixture
def ipc(short_path: Path) -> Location:
    return Location(f"zmq+ipc://{short_path}/s.sock")


@pytest.fixture
def within() -> Location:
    return Location(f"zmq+inproc://here-{next(_names)}")


@pytest.fixture
def raw() -> Iterator[Raw]:
    from zmq_strangers import Raw  # which needs the library

    with Raw() as raw:
        yield raw
