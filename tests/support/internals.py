"""The one place where tests reach for the I/O of an open client or server: to break its link, or to count its work."""

from __future__ import annotations

from typing import Any

from remit import Client, Server
from remit._io.client_io import ClientIO
from remit._io.server_io import ServerIO
from remit._protocol.session import Session


def client_io(client: Client) -> ClientIO:
    """Return the I/O of a client that was used already."""
    assert client._io is not None
    return client._io


def server_io(server: Server) -> ServerIO:
    """Return the I/O of an open server."""
    assert server._io is not None
    return server._io


def sessions_of(server: Server) -> list[Session]:
    """Return the sessions of the clients of a server."""
    return list(server_io(server).machine.sessions.values())


def post(server: Server, session: Session, name: str, *args: Any) -> None:
    """Send an event to one client, also one with a reserved name."""
    server_io(server).emit(session, name, args, {})


def answer_reserved(server: Server, name: str, value: Any) -> None:
    """Answer requests of a reserved name with ``value``."""
    server._router.register_request(name, lambda *_: value)
