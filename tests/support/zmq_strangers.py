"""Strangers to a link over ZeroMQ: they have its library and not Remit; and what the link must not notice of them."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from links import DEADLINE, Pair, frames, losses
from processes import SUPPORT

from remit import Location
from remit.transport import Link

zmq = pytest.importorskip("zmq")
pytest.importorskip("remit_zeromq")
TCP = Location("zmq+tcp://127.0.0.1:0")
BIG = 100_000
"""Bytes of a frame of which a few hundred are more than the kernel holds."""


class Raw:
    """Sockets of a stranger's, who has ZeroMQ and not Remit."""

    def __init__(self) -> None:
        self._context = zmq.Context()
        self._sockets: list[Any] = []

    def socket(self, kind: int, *, routing_id: bytes = b"") -> Any:
        made = self._context.socket(kind)
        self._sockets.append(made)
        made.linger = 0
        made.rcvtimeo = made.sndtimeo = int(DEADLINE * 1000)
        if routing_id:
            made.setsockopt(zmq.ROUTING_ID, routing_id)
        return made

    def connected(self, kind: int, location: Location, *, routing_id: bytes = b"") -> Any:
        made = self.socket(kind, routing_id=routing_id)
        made.connect(endpoint(location))
        return made

    def reports(self, made: Any, *events: int) -> Any:
        """Return what tells of events, from now on."""
        reports = made.get_monitor_socket(sum(events))
        self._sockets.append(reports)
        return reports

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        for made in self._sockets:
            made.close(linger=0)
        self._context.term()


def endpoint(location: Location) -> str:
    if location.scheme == "zmq+tcp":
        return f"tcp://{location.host}:{location.port}"
    return f"ipc://{location.path}"


def undisturbed(pair: Pair) -> None:
    """A frame passes each way, and nothing else has come."""
    pair.to_server(b"undisturbed")
    pair.to_client(b"so am I")
    pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
    assert frames(pair.at_server) == [b"undisturbed"]
    assert frames(pair.at_client) == [b"so am I"]
    assert not losses(pair.at_server) + losses(pair.at_client)


def dropped(link: Link) -> int:
    count = link.dropped  # type: ignore[attr-defined]
    assert isinstance(count, int)
    return count


def script(code: str, *arguments: object) -> str:
    """Run code of its own process to its end and return what it said."""
    code = f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{code}"
    # From 3.12 on Python itself warns of forks beside threads, of which there is at least the library's here.
    command = [sys.executable, "-W", "ignore::DeprecationWarning", "-c", code, *map(str, arguments)]
    ran = subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert ran.returncode == 0, ran.stderr
    assert not ran.stderr
    return ran.stdout.strip()
