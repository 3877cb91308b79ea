"""What the tasks of these tests call travels by value: a child cannot import a test module."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import cloudpickle
import pytest


@pytest.fixture(autouse=True)
def by_value(request: pytest.FixtureRequest) -> Iterator[None]:
    """Have functions of the test's own module pickled whole."""
    cloudpickle.register_pickle_by_value(request.module)
    yield
    cloudpickle.unregister_pickle_by_value(request.module)


@pytest.fixture
def runtime_folder(short_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime folder of the test's own, in which managers are found by no other test."""
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(short_path))
    return short_path
