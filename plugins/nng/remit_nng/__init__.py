"""Remit over nng. Only the plugin's hook: pynng is imported when the first location is opened."""

from __future__ import annotations

from remit.transport import Transport, hookimpl


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for a scheme, or None for the scheme of another plugin."""
    if scheme not in ("nng+tcp", "nng+ipc"):
        return None
    from remit_nng.transport import NngTransport

    return NngTransport(scheme)
