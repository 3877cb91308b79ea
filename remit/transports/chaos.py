"""Chaos: around any other transport: it loses, repeats, delays, reorders and cuts, so that you can test what you built.

``chaos+unix:///tmp/a.sock?seed=7&loss=0.2&duplication=0.1`` is ``unix:///tmp/a.sock`` on a bad day. Each end spoils
what it sends itself, so give the location to both. The same seed and the same calls give the same decisions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from remit.location import Location, read_seconds
from remit.transport import Transport
from remit.transports.chaoslink import ChaosClientLink, ChaosLink, ChaosServerLink
from remit.transports.faults import Faults

__all__ = ["ChaosTransport"]


def read_seed(text: str) -> int:
    """Read a whole number from 0. Raises ValueError."""
    if not (text.isascii() and text.isdecimal()):
        raise ValueError(f"not a whole number from 0: {text!r}")
    return int(text)


def read_probability(text: str) -> float:
    """Read a number from 0 to 1. Raises ValueError."""
    probability = float(text)
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"not a number from 0 to 1: {text!r}")
    return probability


READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "seed": read_seed,
    "loss": read_probability,
    "duplication": read_probability,
    "reorder": read_probability,
    "delay": read_seconds,
    "cut": read_probability,
}
"""The options of its own, which are those of `Faults`; all others are the wrapped transport's."""


class ChaosTransport:
    """``chaos+<scheme>:``: the transport of ``scheme``, spoiled.

    It keeps the contract but for what it is asked to break: it declares itself lossy, and with ``duplication`` or
    ``reorder`` frames come twice or out of order, as they do on no honest transport.
    """

    def __init__(self, scheme: str, transport: Transport) -> None:
        self.capabilities = replace(transport.capabilities, lossy=True)
        self.options: Mapping[str, Callable[[str], Any]] = {**transport.options, **READERS}
        self._scheme = scheme
        self._transport = transport

    def bind(self, location: Location) -> ChaosLink:
        """Open the server's end. Raises what the wrapped transport does."""
        faults, bare = self._read(location)
        link = self._transport.bind(bare)
        return ChaosServerLink(link.location.replace(scheme=location.scheme, options=location.options), link, faults)

    def connect(self, location: Location) -> ChaosLink:
        """Open the client's end. Raises what the wrapped transport does."""
        faults, bare = self._read(location)
        return ChaosClientLink(location, lambda: self._transport.connect(bare), faults)

    def _read(self, location: Location) -> tuple[Faults, Location]:
        """Return what is asked of us, and the location with what is asked of the wrapped transport."""
        values = location.read(self.options)
        faults = Faults(**{name: value for name, value in values.items() if name in READERS})
        rest = {name: text for name, text in location.options if name not in READERS}
        return faults, location.replace(scheme=self._scheme, options=rest)
