"""Transport: opens lobbies for servers, and clients that ask there for a channel of their own."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pynng

from remit.errors import LocationInUse, TransportError
from remit.location import Location, read_size
from remit.transport import Capabilities, FileLock, Link
from remit_nng import addresses as places
from remit_nng import link as forks
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
        places.lobby_name(location, binding=True)
        claim = FileLock(location.path) if places.on_files(location) else None
        try:
            with _translating(location):
                return ServerLink(location, capabilities, claim)
        except BaseException:
            if claim is not None:
                claim.release()
            raise

    def connect(self, location: Location) -> Link:
        """Open a client, which comes up when a server is there. Raises BadLocation, TransportError."""
        forks.used()
        capabilities = self._read(location)
        places.lobby_name(location, binding=False)
        with _translating(location):
            return ClientLink(location, capabilities)

    def _read(self, location: Location) -> Capabilities:
        options = location.read(self.options)
        return replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME))


@contextlib.contextmanager
def _translating(location: Location) -> Iterator[None]:
    try:
        yield
    except (pynng.NNGException, OSError) as error:
        raise _translated(error, location) from error


def _translated(error: Exception, location: Location) -> TransportError:
    if isinstance(error, pynng.AddressInUse):
        return LocationInUse(f"{location} has a server already; end that one or choose another place")
    if isinstance(error, pynng.OutOfFiles) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
        return TransportError(f"cannot open {location}: out of descriptors; raise `ulimit -n`")
    advice = "is its folder there, and may you write to it?" if location.path else "is the address this host's own?"
    return TransportError(f"cannot open {location}: {error}; {advice}")
