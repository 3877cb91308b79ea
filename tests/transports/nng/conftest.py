"""Places over nng, and a shorter patience with those who claim nothing."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from remit import Location

if TYPE_CHECKING:
    from nng_strangers import Limit  # which needs the library

SCHEMES = ("nng+tcp", "nng+ipc")


@pytest.fixture(params=SCHEMES)
def place(request: pytest.FixtureRequest, short_path: Path) -> Location:
    return Location("nng+tcp://127.0.0.1:0" if request.param == "nng+tcp" else f"nng+ipc://{short_path}/s.sock")


@pytest.fixture
def tcp() -> Location:
    return Location("nng+tcp://127.0.0.1:0")


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "s.sock"


@pytest.fixture
def ipc(path: Path) -> Location:
    return Location(f"nng+ipc://{path}")


@pytest.fixture
def claims_within(monkeypatch: pytest.MonkeyPatch) -> Limit:
    """For a while, what nobody claims is given up after so many seconds."""

    @contextlib.contextmanager
    def within(seconds: float) -> Iterator[None]:
        with monkeypatch.context() as patch:
            patch.setattr("remit_nng.server.CLAIM_TIMEOUT_S", seconds)
            patch.setattr("remit_nng.client.CLAIM_TIMEOUT_S", seconds)
            yield

    return within
