"""Mutants that mistake whose they are, or do not end well."""

from __future__ import annotations

import os
import threading
from typing import Any

from mutants.making import (
    QUICK,
    MutantTransport,
    Sound,
    hanging,
    leaked,
    mutant,
    plain,
    released,
)
from remit.errors import LocationInUse
from remit.location import Location
from remit.transport import (
    Arrival,
    Down,
)
from remit.transports.memory import _HUBS, MemoryLink


@mutant("another_thread_is_refused", "does not raise WrongThreadError")
class ServesAnyThread(Sound):
    def _check(self, frame: bytes = b"") -> None:
        self.owner = threading.get_ident()
        super()._check(frame)


@mutant("a_link_can_be_handed_over", "WrongThreadError")
class KeepsItsFirstThread(Sound):
    def _check(self, frame: bytes = b"") -> None:
        self.mate = self.mate or self.owner
        self.owner = self.mate
        super()._check(frame)


@mutant("a_closed_link_says_so", "ValueError: closed already")
class ClosesOnce(Sound):
    def close(self, linger: float) -> None:
        if self._closed:
            raise ValueError("closed already")
        super().close(linger)


@mutant("a_closed_link_says_so", "receive does not raise LinkClosed")
class ReceivesNothingOnceClosed(Sound):
    def receive(self) -> Arrival | None:
        return None if self._closed else super().receive()


@hanging("close_is_bounded_without_a_server")
class LingersForSomebody(Sound):
    def close(self, linger: float) -> None:
        while not self._closed and not self._connections and not released.wait(0.01):
            pass
        super().close(linger)


@hanging("close_is_bounded_without_a_reader")
class LingersForEver(Sound):
    def close(self, linger: float) -> None:
        while any(route.queued for route in self._routes.values()) and not released.wait(0.01):
            pass
        super().close(linger)


@mutant("accepted_frames_survive_close", "frames arrive; ", deadline=QUICK, sees_peers=False)
class ForgetsLastWords(Sound):
    def close(self, linger: float) -> None:
        for route in self._routes.values():
            route.target.inbox.clear()
        super().close(linger)

    def receive(self) -> Arrival | None:
        arrival = super().receive()
        return None if isinstance(arrival, Down) else arrival


@mutant("closed_links_leak_nothing", "released", deadline=QUICK)
class LeaksDescriptors(Sound):
    def close(self, linger: float) -> None:
        if not self._closed:
            leaked.append(os.open(os.devnull, os.O_RDONLY))
        super().close(linger)


@mutant("closed_links_leak_nothing", "released", deadline=QUICK)
class LeaksThreads(Sound):
    def close(self, linger: float) -> None:
        if not self._closed:
            threading.Thread(target=released.wait, daemon=True).start()
        super().close(linger)


@mutant("a_location_is_free_after_close", "LocationInUse")
class KeepsItsLocation(Sound):
    def _leave_hub(self, hub: Any) -> None:
        served = hub.server is self
        super()._leave_hub(hub)
        if served:
            _HUBS.setdefault(self.name, hub).server = self


class LetsAnotherServerIn(MutantTransport):
    def bind(self, location: Location) -> MemoryLink:
        try:
            return super().bind(location)
        except LocationInUse:
            return super().bind(location.replace(path="/another"))


plain("LetsAnotherServerIn", "a_second_server_is_refused", "second server was bound", LetsAnotherServerIn)


@mutant("port_0_becomes_a_real_one", "has the location", place="memory://{}:0")
class DoesNotSayItsPort(Sound):
    pass
