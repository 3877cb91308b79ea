"""Transport: opens lobbies for servers, and clients that ask there for a channel of their own."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

import pynng

from remit.claim import Claim
from remit.errors import BadLocation, LocationInUse, TransportError
from remit.location import Location, read_size
from remit.transport import Capabilities, Link
from remit_nng import forks
from remit_nng.client import ClientLink
from remit_nng.server import ServerLink

__all__ = ["NngTransport"]

MAX_FRAME: Final = 16 * 1024 * 1024
"""Bytes of the largest frame, unless the location's ``max_frame`` says otherwise."""


class NngTransport:
    """Remit over ``nng+tcp:`` or ``nng+ipc:``."""

    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def __init__(self, scheme: str) -> None:
        self.capabilities = Capabilities(max_frame=MAX_FRAME, crosses_hosts=scheme == "nng+tcp", forks=False)

    def bind(self, location: Location) -> Link:
        """Open a server. Raises LocationInUse, BadLocation, TransportError."""
        forks.used()
        capabilities = self._read(location)
        place = _place(location, binding=True)
        claim = Claim(location.path) if location.path else None
        try:
            return ServerLink(location, capabilities, place, claim)
        except BaseException as error:
            if claim is not None:
                claim.release()
            if isinstance(error, pynng.NNGException):
                raise _translated(error, location) from error
            raise

    def connect(self, location: Location) -> Link:
        """Open a client, which comes up when a server is there. Raises BadLocation, TransportError."""
        forks.used()
        return ClientLink(location, self._read(location), _place(location, binding=False))

    def _read(self, location: Location) -> Capabilities:
        options = location.read(self.options)
        return replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME))


def _translated(error: pynng.NNGException, location: Location) -> TransportError:
    if isinstance(error, pynng.AddressInUse):
        return LocationInUse(f"{location} has a server already; end that one or choose another place")
    advice = "is its folder there, and may you write to it?" if location.path else "is the address this host's own?"
    return TransportError(f"cannot open {location}: {error}; {advice}")


def _place(location: Location, *, binding: bool) -> str:
    """Return nng's own name of the place. Raises BadLocation."""
    if location.scheme == "nng+tcp":
        if not location.host or location.port is None:
            raise BadLocation(f"{location} needs a host and a port, as in nng+tcp://127.0.0.1:5555")
        if not binding and location.port == 0:
            raise BadLocation(f"{location} is no place to connect to; take the server's own `location`")
        host = f"[{location.host}]" if ":" in location.host else location.host
        return f"tcp://{host}:{location.port}"
    if not location.path:
        raise BadLocation(f"{location} needs a path, as in nng+ipc:///tmp/events.sock")
    return f"ipc://{location.path}"
