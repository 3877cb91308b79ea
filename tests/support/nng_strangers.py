"""Strangers to a server over nng: they have its library, or bare sockets, and not Remit."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeAlias

import pytest
from links import Pair, frames, until

from remit import Location
from remit.transport import SERVER

pynng: Any = pytest.importorskip("pynng")
pytest.importorskip("remit_nng")
ASK = b"remit 1"
TOKEN = 16
SOON = 0.1
"""Seconds that a claim may take in tests that wait for its end."""
Limit: TypeAlias = Callable[[float], contextlib.AbstractContextManager[None]]


def door(location: Location, where: str = "") -> str:
    """Return nng's own name of a lobby, or of a session that was told there."""
    if location.path:
        return f"ipc://{file(location, where)}"
    return f"tcp://{location.host}:{where or location.port}"


def file(location: Location, where: str = "") -> Path:
    return Path(f"{location.path}~{where}" if where else location.path)


def raw(location: Location, where: str = "") -> socket.socket:
    """Connect to where nng listens, with nothing of nng."""
    if location.path:
        stranger = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            stranger.connect(str(file(location, where)))
        except OSError:
            stranger.close()
            raise
        return stranger
    return socket.create_connection((location.host, int(where or location.port or 0)))


def answered(stranger: Any, step: Callable[[], None]) -> bytes:
    answers: list[bytes] = []

    def heard() -> bool:
        with contextlib.suppress(pynng.TryAgain):
            answers.append(received(stranger))
        return bool(answers)

    until(heard, step)
    return answers[0]


def received(stranger: Any) -> bytes:
    return bytes(stranger.recv_msg(block=False).bytes)


def asked(location: Location, step: Callable[[], None]) -> tuple[bytes, str]:
    """Ask in the lobby as a client does; return the token and the place of the session that was given."""
    with pynng.Req0(dial=door(location)) as lobby:
        lobby.send(ASK)
        answer = answered(lobby, step)
    return answer[:TOKEN], answer[TOKEN:].decode()


def opened(location: Location, where: str) -> Any:
    session = pynng.Pair0()
    session.dial(door(location, where), block=True)
    return session


def gone(location: Location, where: str) -> bool:
    """Say whether nobody listens there any more."""
    try:
        raw(location, where).close()
    except OSError:
        return True
    return False


@contextlib.contextmanager
def undisturbed(place: Location) -> Iterator[Pair]:
    """A pair that works before and after, and sees nothing of what happens meanwhile."""
    with Pair(place) as pair:
        pair.meet()
        pair.at_server.clear()
        pair.at_client.clear()
        yield pair
        pair.to_server(b"undisturbed")
        pair.to_client(b"undisturbed")
        pair.until(lambda: b"undisturbed" in frames(pair.at_server) and frames(pair.at_client))
        assert [arrival for arrival in pair.at_server if arrival.peer == pair.peer] == [(pair.peer, b"undisturbed")]  # type: ignore[union-attr]
        assert pair.at_client == [(SERVER, b"undisturbed")]


def hangs_up(stranger: socket.socket, step: Callable[[], None]) -> None:
    """Wait until the other side has closed the connection."""
    stranger.setblocking(False)

    def closed() -> bool:
        try:
            return stranger.recv(4096) == b""
        except BlockingIOError:
            return False
        except ConnectionError:
            return True

    until(closed, step)
