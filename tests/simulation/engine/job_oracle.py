"""Simulated rota: a broker's second pair of eyes: who may have which job in hand, and whose turn it is."""

from __future__ import annotations

from collections.abc import Callable, Collection
from typing import Any, Final, TypeAlias

from engine.request_oracle import Inquiry
from engine.virtual_clock import World
from remit._protocol.session import Session
from remit.listeners import matcher

__all__ = ["Place", "Rota"]


Place: TypeAlias = tuple[Any, int]
"""Which question of which client a job is."""
FEW: Final = 8
"""Clients that wait for one name, up to which their turns are compared."""


class _Hand:
    """What one worker has in hand."""

    def __init__(self, names: list[str], capacity: int) -> None:
        self.matches: list[Callable[[str], object]] = [matcher(name) for name in names]
        self.capacity = capacity
        self.left = False
        self.jobs: dict[Place, tuple[int, Inquiry]] = {}
        self.begun: set[int] = set()

    def put_back(self) -> None:
        """What has not begun is for others."""
        self.jobs = {place: job for place, job in self.jobs.items() if job[0] in self.begun}


class Rota:
    """The workers of one broker instance and their jobs, as told by what passes between them."""

    def __init__(self, world: World, max_attempts: int) -> None:
        self._world = world
        self._max_attempts = max_attempts
        self._hands: dict[Session, _Hand] = {}
        self._where: dict[Place, Session] = {}
        self._given: dict[Place, tuple[int, set[int]]] = {}
        """The serial number of each job that was given away, and the tokens under which it was."""
        self._passed: dict[tuple[str, Any], set[Any]] = {}
        """For each client whose jobs of a name wait: those whose turn came meanwhile."""

    def __contains__(self, session: Session) -> bool:
        return session in self._hands

    def __iter__(self) -> Any:
        return iter(list(self._hands))

    # -- workers -----------------------------------------------------------------------------------------------

    def announced(self, session: Session, names: list[str], capacity: int) -> None:
        """A worker says what it takes; what it has not begun it does not have."""
        former = self._hands.get(session)
        self._hands[session] = hand = _Hand(names, capacity)
        if former is not None:
            hand.jobs, hand.begun = former.jobs, former.begun
            self._put_back(hand)

    def left(self, session: Session) -> None:
        """A worker takes no more."""
        hand = self._hands.get(session)
        if hand is not None:
            hand.left = True
            self._put_back(hand)

    def gone(self, session: Session) -> None:
        """A worker is taken for dead."""
        hand = self._hands.pop(session)
        for place, (_, inquiry) in hand.jobs.items():
            del self._where[place]
            inquiry.losses += 1
        self._passed.clear()

    def begun(self, session: Session, token: int) -> None:
        """A worker begins a job."""
        hand = self._hands.get(session)
        if hand is not None and any(token == held for held, _ in hand.jobs.values()):
            hand.begun.add(token)

    def _put_back(self, hand: _Hand) -> None:
        before = set(hand.jobs)
        hand.put_back()
        for place in before - set(hand.jobs):
            del self._where[place]
        self._passed.clear()

    # -- jobs --------------------------------------------------------------------------------------------------

    def given(self, session: Session, place: Place, token: int, attempt: int, inquiry: Inquiry) -> None:
        """A job is given to a worker. Fails if another one has it, or if it was tried too often."""
        holder = self._where.get(place)
        if holder is not None:
            self._world.fail(f"job {inquiry.serial} is given to {_short(session)}, but {_short(holder)} has it")
        if attempt > self._max_attempts:
            self._world.fail(f"job {inquiry.serial} is tried {attempt} times")
        hand = self._hands.get(session)
        if hand is None or hand.left or len(hand.jobs) >= hand.capacity:
            self._world.fail(f"job {inquiry.serial} is given to {_short(session)}, which takes no more")
        self._where[place] = session
        hand.jobs[place] = token, inquiry
        self._given.setdefault(place, (inquiry.serial, set()))[1].add(token)

    def answered(self, place: Place, outcome: str, answer: Any) -> None:
        """Note the outcome of a job at its client. Fails if the answering worker was never given the job."""
        session = self._where.pop(place, None)
        if session is not None:
            del self._hands[session].jobs[place]
        serial, tokens = self._given.pop(place, (None, set()))
        if outcome == "done" and (answer[0] != serial or answer[1] not in tokens):
            self._world.fail(f"the answer {answer} is taken from one that was never given job {serial}: {tokens} were")

    def dropped(self, places: Collection[Place]) -> None:
        """Nobody waits for these any more: those that have not begun are ended."""
        for place in places:
            session = self._where.get(place)
            if session is not None and self._hands[session].jobs[place][0] not in self._hands[session].begun:
                del self._where[place], self._hands[session].jobs[place]

    def of(self, client: Session) -> list[Place]:
        """Return the jobs of a client that somebody has."""
        return [place for place in self._where if place[0] is client]

    # -- whose turn --------------------------------------------------------------------------------------------

    def waits(self, name: str, client: Any, waiting: Collection[Any]) -> None:
        """A client asks: unless something of it waits already, its turn comes anew."""
        if client not in waiting:
            self._passed.pop((name, client), None)

    def turn(self, name: str, client: Any, waiting: Collection[Any]) -> None:
        """A client has its turn. Fails if it has it twice while another one, that waits, has none."""
        self._passed.pop((name, client), None)
        if len(waiting) > FEW:
            return
        for other in waiting:
            if other is not client:
                passed = self._passed.setdefault((name, other), set())
                if client in passed:
                    self._world.fail(f"{_short(client)} has its turn twice, and {_short(other)} waits for {name}")
                passed.add(client)

    def idle(self, name: str) -> Session | None:
        """Return a worker that could take one more of this name."""
        for session, hand in self._hands.items():
            if not hand.left and len(hand.jobs) < hand.capacity and any(match(name) for match in hand.matches):
                return session
        return None


def _short(session: Session) -> str:
    return session.id.hex()[:8]
