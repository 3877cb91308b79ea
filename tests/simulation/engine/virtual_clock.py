"""Simulated world: a clock that jumps from one thing to the next, and those who do something when their time comes."""

from __future__ import annotations

import heapq
import itertools
import random
from collections.abc import Callable
from typing import Any, Final, NoReturn

__all__ = ["NEVER", "SPIN", "Actor", "SimulationFailed", "World"]


NEVER: Final = float("inf")
SPIN: Final = 1000
"""Rounds in one go after which an end that cannot come to rest has failed."""
RESTLESS: Final = 1000
"""Times that somebody acts at one and the same moment, beyond which it would burn a processor in the real world."""


class SimulationFailed(AssertionError):
    """Raised when what Remit promises did not hold."""


class World:
    """Virtual time, chance and a schedule: the same seed makes the same history."""

    def __init__(self, seed: int) -> None:
        self.now = 0.0
        self.random = random.Random(seed)
        self._failure: SimulationFailed | None = None
        self._schedule: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._order = itertools.count()

    def clock(self) -> float:
        """Return the virtual time in seconds."""
        return self.now

    def at(self, moment: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something done at a moment."""
        heapq.heappush(self._schedule, (moment, next(self._order), action, arguments))

    def after(self, seconds: float, action: Callable[..., None], *arguments: Any) -> None:
        """Have something done so many seconds from now."""
        self.at(self.now + seconds, action, *arguments)

    def run(self, until: float) -> None:
        """Do all that is due until a moment, and stand there."""
        schedule, pop = self._schedule, heapq.heappop
        while schedule and schedule[0][0] <= until:
            self.now, _, action, arguments = pop(schedule)
            action(*arguments)
            if self._failure is not None:
                raise self._failure
        self.now = until

    def fail(self, what: str) -> NoReturn:
        """Let the simulation fail, even if whoever called swallows what is raised here."""
        self._failure = SimulationFailed(what)
        raise self._failure


class Actor:
    """Somebody who acts when woken: once at a time, not while stalled, and never after the end."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.alive = True
        self.stalled_until = 0.0
        self._wake_at = NEVER
        self._acted_at = NEVER
        self._acts = 0

    def wake(self, moment: float) -> None:
        """Act at a moment, or earlier if that is settled already."""
        if moment < self._wake_at:
            self._wake_at = moment
            self.world.at(moment, self._woken, moment)

    def _woken(self, moment: float) -> None:
        if moment != self._wake_at or not self.alive:
            return
        self._wake_at = NEVER
        if self.world.now < self.stalled_until:
            self.wake(self.stalled_until)
            return
        self._acts = self._acts + 1 if moment == self._acted_at else 1
        self._acted_at = moment
        if self._acts > RESTLESS:
            raise SimulationFailed(f"{self} cannot come to rest")
        self.act()

    def act(self) -> None:
        """Do what there is to do."""
        raise NotImplementedError
