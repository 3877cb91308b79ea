"""A project with nothing configured, and backends that only a configuration could choose."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from remit.plugins import register_transport, unregister_transport
from remit.transport import Capabilities
from remit.transports.memory import MemoryTransport


@pytest.fixture(autouse=True)
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory, with nothing configured anywhere and a session folder of its own."""
    for name in [name for name in os.environ if name.startswith("REMIT_")]:
        monkeypatch.delenv(name)
    session = tmp_path / "session"
    session.mkdir(mode=0o700)
    # Pytest's folder may be too deep for a socket.
    monkeypatch.setattr("remit.runtime_dirs.MAX_FOLDER_BYTES", 1000)
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(session))
    folder = tmp_path / "project"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


class Wide(MemoryTransport):
    """A transport that reaches other hosts, and keeps its users apart by prefixes."""

    capabilities = Capabilities(max_frame=1024, crosses_hosts=True)
    options = {"prefix": str}


@pytest.fixture(autouse=True)
def transports() -> Iterator[None]:
    """The schemes of three backends: one with carriers, one with hosts and ports only, one with a prefix."""
    names = ("pipes+tcp", "pipes+ipc", "wires+tcp", "wide")
    for name in names:
        register_transport(name, Wide())
    yield
    for name in names:
        unregister_transport(name)
