"""Opens servers and clients over nng, from the URLs and options of locations."""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from typing import Any, Final

import pynng

from remit.errors import LocationInUse, TransportError
from remit.location import Location, read_size
from remit.transport import Capabilities, Link
from remit_nng.client import ClientLink
from remit_nng.link import mark_used
from remit_nng.server import ServerLink

MAX_FRAME: Final = 16 * 1024 * 1024
"""Default of the option ``max_frame``, in bytes."""


class NngTransport:
    """Remit over ``nng+tcp:`` or ``nng+ipc:``."""

    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size}

    def __init__(self, scheme: str) -> None:
        self.capabilities = Capabilities(max_frame=MAX_FRAME, crosses_hosts=scheme == "nng+tcp", forks=False)

    def bind(self, location: Location) -> Link:
        """Open a server. Raises LocationInUse, BadLocation, TransportError."""
        with _opening(location):
            return ServerLink(location, self._read(location))

    def connect(self, location: Location) -> Link:
        """Open a client, which reports `Up` once a server is bound. Raises BadLocation, TransportError."""
        with _opening(location):
            return ClientLink(location, self._read(location))

    def _read(self, location: Location) -> Capabilities:
        options = location.read(self.options)
        return replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME))


@contextlib.contextmanager
def _opening(location: Location) -> Iterator[None]:
    """Record that nng is used, and translate the errors of the block."""
    mark_used()
    try:
        yield
    except pynng.AddressInUse as error:
        raise LocationInUse(f"{location} has a server already; stop it or choose another place") from error
    except (pynng.NNGException, OSError) as error:
        if isinstance(error, pynng.OutOfFiles) or getattr(error, "errno", None) in (errno.EMFILE, errno.ENFILE):
            advice = "out of descriptors; raise `ulimit -n`"
        elif location.path:
            advice = f"{error}; does its folder exist, and may you write to it?"
        else:
            advice = f"{error}; check the host; a server can bind only to an address of its own host"
        raise TransportError(f"cannot open {location}: {advice}") from error
