"""Remit over ZeroMQ. Only the plugin's hook: pyzmq is imported when the first location is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from remit.hookspecs import hookimpl

if TYPE_CHECKING:
    from remit.transport import Transport

SCHEMES: Final = ("zmq+tcp", "zmq+ipc", "zmq+inproc")


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for `SCHEMES`."""
    if scheme not in SCHEMES:
        return None
    from remit_zeromq.transport import ZeroMQTransport

    return ZeroMQTransport(scheme)
