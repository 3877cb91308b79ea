"""Remit over nng. Only the plugin's hook: pynng is imported when the first location is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from remit.hookspecs import hookimpl

if TYPE_CHECKING:
    from remit.transport import Transport

SCHEMES: Final = ("nng+tcp", "nng+ipc")


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for `SCHEMES`."""
    if scheme not in SCHEMES:
        return None
    from remit_nng.transport import NngTransport

    return NngTransport(scheme)
