"""How mutants are made: memory with one method wrong, and which check must catch it with which words."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from remit.location import Location
from remit.runtime_dirs import fresh_name
from remit.testing import Disruption, Harness
from remit.transport import (
    Arrival,
    Transport,
)
from remit.transports.memory import _HUBS, MemoryLink, MemoryTransport

HANGING = 0.5
"""Seconds after which a check that hangs, as it must, has failed."""
QUICK = 1.0
"""Seconds after which a check that waits in vain has failed."""
FAIR = 10.0
"""Seconds for a check that must fail by what it sees."""

released = threading.Event()
leaked: list[int] = []


def release() -> None:
    """Let go of what hangs, and give back what leaked, when all is over."""
    released.set()
    while leaked:
        os.close(leaked.pop())


class Sound(MemoryLink):
    """No mutant: what the others are made from."""

    sent = 0
    mate = None

    @property
    def serves(self) -> bool:
        hub = _HUBS.get(self.name)
        return hub is not None and hub.server is self


class MutantTransport(MemoryTransport):
    """Memory with links of another class, and other capabilities than it has."""

    def __init__(self, link: type[Sound] = Sound, **claims: Any) -> None:
        self.link = link
        self.capabilities = replace(MemoryTransport.capabilities, **claims)

    def _link(self, location: Location) -> MemoryLink:
        link = super()._link(location)
        link.__class__ = self.link
        return link


class MutantHarness(Harness):
    def __init__(
        self,
        transport: Transport,
        *,
        deadline: float = FAIR,
        place: str = "memory://{}",
        breaks: Mapping[Disruption, Callable[[str], None]] = MappingProxyType({}),
    ) -> None:
        self.transport = transport
        self.deadline = deadline
        self.patience = deadline
        self.place = place
        self.disruptions = {kind: partial(self._break, how) for kind, how in breaks.items()}

    def location(self) -> Location:
        self.last = Location(self.place.format(fresh_name("mutant")))
        return self.last

    def _break(self, how: Callable[[str], None]) -> None:
        how(self.last.host)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"disruptions": {}}


@dataclass(frozen=True)
class Mutant:
    name: str
    caught_by: str
    says: str
    transport: Callable[[], Transport]
    deadline: float = FAIR
    place: str = "memory://{}"
    breaks: Mapping[Disruption, Callable[[str], None]] = field(default_factory=dict)

    @property
    def harness(self) -> Harness:
        return MutantHarness(self.transport(), deadline=self.deadline, place=self.place, breaks=self.breaks)


MUTANTS: list[Mutant] = []


def mutant(caught_by: str, says: str, **options: Any) -> Callable[[type[Sound]], type[Sound]]:
    """Make the decorated link a mutant which one check must catch, with these words."""
    deadline = options.pop("deadline", FAIR)
    place = options.pop("place", "memory://{}")

    def add(link: type[Sound]) -> type[Sound]:
        def make() -> Transport:
            return MutantTransport(link, **options)

        MUTANTS.append(Mutant(link.__name__, caught_by, says, make, deadline=deadline, place=place))
        return link

    return add


def hanging(caught_by: str, **options: Any) -> Callable[[type[Sound]], type[Sound]]:
    return mutant(caught_by, "blocked|not within", deadline=HANGING, **options)


class Retold(Sound):
    """Tells the arrivals at the server's end in another way."""

    def retell(self, arrival: Arrival) -> Arrival | None:
        raise NotImplementedError

    def receive(self) -> Arrival | None:
        arrival = super().receive()
        return self.retell(arrival) if arrival is not None and self.serves else arrival


def plain(name: str, caught_by: str, says: str, transport: Callable[[], Transport], **options: Any) -> None:
    MUTANTS.append(Mutant(name, caught_by, says, transport, **options))


def claims(**capabilities: Any) -> Callable[[], Transport]:
    return lambda: MutantTransport(**capabilities)


def cut(name: str, *, said: bool = True, mended: bool = True) -> None:
    """Break each connection at a place with all that is under way, and let the ends meet again."""
    hub = _HUBS[name]
    for client in list(hub.clients):
        for one, other in ((client, hub.server), (hub.server, client)):
            one.inbox.clear()
            if said:
                one.disconnect(other)
        if said and mended:
            hub.server._connect_client(client)
