"""Harness: what a transport's author gives the suite: fresh locations, how to reach them, and how to break them."""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any, Final

from remit.errors import BadLocation
from remit.location import Location
from remit.places import fresh_name
from remit.plugins import find_transport
from remit.settings import settle
from remit.testing.relay import Relay
from remit.transport import Transport

__all__ = ["DEADLINE", "PATIENCE", "Disruption", "Harness", "UrlHarness"]

DEADLINE: Final = 20.0
"""Seconds after which a check that has not passed has failed."""
PATIENCE: Final = 2.0
"""Seconds after which a capability that nobody declared counts as not working."""
PREFIX: Final = "prefix"
"""The option by which a transport keeps several users of one backend apart."""
HINT: Final = "c"
"""What the names that are made begin with; short, because a socket's path is."""
NOTHING: Final[Mapping[Disruption, Callable[[], None]]] = MappingProxyType({})


class Disruption(enum.Enum):
    """What a harness may be able to do to a connection; the value completes "this harness cannot ..."."""

    CUT_LINK = "cut a connection between two ends that are both alive"
    STALL_PEER = "keep a connection open and let nothing more pass"
    RESTART_SERVER = "restart the backend's own server"


class Harness:
    """Base of what the suite is run with: subclass it, name a ``transport`` and return a fresh `location`.

    A harness is pickled (by cloudpickle) for the checks that need another process.
    """

    transport: Transport
    """What is put to the test."""
    deadline: float = DEADLINE
    """Seconds for one check."""
    patience: float = PATIENCE
    """Seconds for trying a capability that is not declared."""
    disruptions: Mapping[Disruption, Callable[[], None]] = NOTHING
    """What can be broken, and how; the functions return when it is done."""

    def location(self) -> Location:
        """Return a location at which nobody is, and nobody was."""
        raise NotImplementedError

    def reach(self, bound: Location, *, breakable: bool = False) -> Location:
        """Return where a client finds the server whose link says ``bound``, if it is not there itself.

        ``breakable`` says that the check is going to `disrupt` their connection.
        """
        return bound

    def disrupt(self, kind: Disruption) -> None:
        """Break something that `disruptions` names."""
        self.disruptions[kind]()

    def finish(self) -> None:
        """Give back what a check has needed, now that it is over."""


class UrlHarness(Harness):
    """Finds the transport by a URL, and makes fresh locations of that.

    They have a ``prefix`` of their own where the transport has such an option; an address with a port stays as it
    is, so give it port 0; else they have a path or a name of their own. With ``relayed`` it puts a `Relay` between
    two ends where a check is to cut or stall their connection. Raises LocationError, PluginError.
    """

    def __init__(
        self,
        url: str | Location,
        *,
        deadline: float = DEADLINE,
        patience: float = PATIENCE,
        disruptions: Mapping[Disruption, Callable[[], None]] = NOTHING,
        relayed: bool = False,
    ) -> None:
        given = url if isinstance(url, Location) else Location(url)
        self.transport = find_transport(given.scheme)
        _, self.base = settle(given, self.transport.options, {})
        self.deadline = deadline
        self.patience = patience
        self.relayed = relayed
        self._relays: list[Relay] = []
        cutting = {Disruption.CUT_LINK: self._cut, Disruption.STALL_PEER: self._stall} if relayed else {}
        self.disruptions = {**cutting, **disruptions}
        self.location()

    def location(self) -> Location:
        """Return a fresh location. Raises BadLocation when the URL leaves no room for one."""
        base = self.base
        if PREFIX in self.transport.options:
            return base.replace(options=dict(base.options) | {PREFIX: fresh_name(HINT)})
        if base.port is not None:
            return base
        if base.path.strip("/"):
            return base.replace(path=f"{base.path.rstrip('/')}-{fresh_name(HINT)}")
        if base.host:
            return base.replace(host=f"{base.host}-{fresh_name(HINT)}")
        raise BadLocation(f"{base} has neither a port, nor a path, nor a name; write one of them")

    def reach(self, bound: Location, *, breakable: bool = False) -> Location:
        """Return ``bound``, or the location of a relay to there."""
        if not (self.relayed and breakable):
            return bound
        self._relays.append(Relay(bound))
        return self._relays[-1].location

    def finish(self) -> None:
        """End the relays."""
        while self._relays:
            self._relays.pop().close()

    def _cut(self) -> None:
        for relay in self._relays:
            relay.cut()

    def _stall(self) -> None:
        for relay in self._relays:
            relay.stall()

    def __getstate__(self) -> dict[str, Any]:
        # Found anew in the other process; and what can be broken is broken from this one.
        return self.__dict__ | {"transport": None, "disruptions": {}, "_relays": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.transport = find_transport(self.base.scheme)
