"""Remit over ZeroMQ. Only the plugin's hook: pyzmq is imported when the first location is opened."""

from __future__ import annotations

from remit.transport import Transport, hookimpl


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for a scheme, or None for the scheme of another plugin."""
    if scheme not in ("zmq+tcp", "zmq+ipc", "zmq+inproc"):
        return None
    from remit_zeromq.transport import ZeroMQTransport

    return ZeroMQTransport(scheme)
