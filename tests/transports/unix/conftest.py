"""Places over Unix sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit import Location


@pytest.fixture
def path(short_path: Path) -> Path:
    return short_path / "s.sock"


@pytest.fixture
def place(path: Path) -> Location:
    return Location(f"unix://{path}")
