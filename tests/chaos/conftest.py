"""A clock that chaos looks at and the tests set."""

from __future__ import annotations

import types

import pytest

from remit.transports import chaos


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> types.SimpleNamespace:
    now = types.SimpleNamespace(seconds=100.0)
    monkeypatch.setattr(chaos, "time", types.SimpleNamespace(monotonic=lambda: now.seconds))
    return now
