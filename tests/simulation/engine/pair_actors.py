"""Simulated pairs: owners of a seat, guests that want it, and whether it is ever held by two."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any, Final

from engine.client import SimulatedClient
from engine.delivery_oracle import Book
from engine.network import Host
from engine.server import SimulatedServer
from engine.virtual_clock import World
from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._patterns.names import PAIR_ENDED, PAIR_JOIN
from remit._protocol.session import Session
from remit.errors import PairBusy, PeerLost, RequestFailed

__all__ = ["SimulatedGuest", "SimulatedOwner"]


LOOK: Final = 0.1
"""Seconds between two looks whether the other one still lives."""
BEATS: Final = 4
"""How often within a lease each lets the other hear of it."""
STAY: Final = 5.0
"""Seconds at the most for which a guest holds the seat."""
PAUSE: Final = 2.0
"""Seconds at the most until somebody else tries."""
JOINING: Final = (0.5, 5.0, 60.0)
"""Seconds that a guest waits to be let in."""


class SimulatedOwner(SimulatedServer):
    """Has a seat to give, and writes down to whom."""

    look = LOOK

    def __init__(self, world: World, host: Host, book: Book, *, limit: int, window: int, ttl: float) -> None:
        super().__init__(world, host, book, limit=limit, window=window, ttl=ttl)
        self.owner = PairServer(self.router, self.post, self._signalled, lease=book.lease, clock=world.clock)
        self._join = self.router.request_handlers[PAIR_JOIN]
        self.router.request_handlers[PAIR_JOIN] = self._asked
        self._seated: dict[int, Session] = {}
        self._parted: set[Session] = set()
        self.heard = self.sent = 0
        """Signals in this epoch."""

    def advance(self) -> None:
        """Look after the seat: who was heard of just now must keep it."""
        holder: Any = self.owner.holder
        self.owner.advance(self.pump.drained_at)
        silent = 0.0 if holder is None else self.world.now - holder.last_received_at
        if holder is not None and self.owner.holder is not holder and silent <= self.book.lease:
            self.world.fail(f"{self} takes the seat from one that it heard of {silent} s ago")

    def speak(self) -> None:
        """Signal whoever holds the seat."""
        if self.owner.holder is not None and self.world.now >= max(self.deaf_until, self.stalled_until):
            try:
                self.owner.signal((self.machine.instance, self.owner.epoch, self.sent + 1))
            except PeerLost:
                return
            self.sent += 1
            self.book.counts["signals"] += 1

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Send an event to a guest."""
        if name == PAIR_ENDED:
            self._parted.add(session)
        super().post(session, name, args)

    def _asked(self, session: Session, lease: float) -> Any:
        """Somebody wants the seat: it must be given if it is free, and must not if somebody has it."""
        last = self._seated.get(self.owner.epoch)
        present = last is not None and last is not session and self._present(last)
        try:
            answer = self._join(session, lease)
        except PairBusy:
            self.book.counts["pairs busy"] += 1
            self._doubt()
            raise
        epoch = answer[0]
        if present:
            self.world.fail(f"{self} gives its seat away, which {last} has")
        if self._seated.setdefault(epoch, session) is not session:
            self.world.fail(f"{self} gives epoch {epoch} to a second one")
        if last is not session:
            self.heard = self.sent = 0
            self.book.counts["pairs"] += 1
        return answer

    def busy(self, sessions: set[bytes]) -> list[str]:
        """Say whether two have met here, and have heard all that the other one said."""
        holder: Any = self.owner.holder
        guest = self.book.guests.get(holder.id) if holder is not None and holder.id in sessions else None
        if guest is None or guest.guest.ended or guest.guest.epoch != self.owner.epoch:
            return [
                *super().busy(sessions),
                f"{self} waits for somebody, its seat is held by {holder and holder.id.hex()}",
            ]
        if (self.heard, guest.heard) != (guest.sent, self.sent):
            return [f"{self} has sent {self.sent} and heard {self.heard}, {guest} {guest.sent} and {guest.heard}"]
        return super().busy(sessions)

    def _present(self, session: Session) -> bool:
        """Whether somebody has the seat and knows nothing to the contrary."""
        guest = self.book.guests[session.id].guest
        if guest.ended or guest.epoch not in (0, self.owner.epoch):
            return False
        return (
            self._has(session)
            and session not in self._parted
            and self.world.now - session.last_received_at <= self.book.lease
        )

    def _doubt(self) -> None:
        """Somebody is turned away: then somebody else must be there, or have been until just now."""
        holder: Any = self.owner.holder
        if holder is None or not (self._has(holder) or any(holder is each for each, _ in self.machine.closed)):
            self.world.fail(f"{self} turns somebody away, but nobody is there")

    def _signalled(self, signal: Any) -> None:
        if isinstance(signal, PeerLost):
            return
        guest, epoch, number = signal[0]
        seat = self.owner
        holder: Any = seat.holder
        if holder is None or guest != holder.id or epoch != seat.epoch:
            self.world.fail(f"{self} hears a signal of epoch {epoch} from one who has lost its seat")
        self.heard += 1
        if number != self.heard:
            self.world.fail(f"{self} hears signal {number} of its guest, and expects {self.heard}")


class SimulatedGuest(SimulatedClient):
    """Wants a seat, keeps it for a while, and lets go."""

    def __init__(self, world: World, host: Host, book: Book, *, window: int) -> None:
        super().__init__(world, host, book, window=window)
        book.guests[self.machine.session.id] = self
        self.guest = PairClient(self.router, self, self._signalled, lease=book.lease)
        self.met = b""
        """The owner that gave the seat."""
        self.heard = self.sent = 0
        """Signals."""
        self._over = False
        future = self.submit(PAIR_JOIN, book.lease, timeout=world.random.choice(JOINING), idempotent=True)
        future.add_done_callback(self._answered)

    def _answered(self, future: Future[Any]) -> None:
        if self._over or not self.alive:
            return
        error = future.exception()
        if error is not None:
            if isinstance(error, RequestFailed) and not error.type_name.endswith("PairBusy"):
                self.world.fail(f"a guest cannot join: {error!r}")
            self._end_soon()
            return
        self.met = self.machine.instance
        if self.guest.ended:
            self.world.fail(f"{self} joins an owner that it has lost: {self.guest.ended}")
        self.guest.on_joined(future.result())
        self.machine.set_heartbeat(self.book.lease / BEATS)
        self.world.after(self.world.random.random() * STAY, self._speak)
        if not self.book.calm:
            self.world.after(self.world.random.random() * STAY, self._depart)

    def _speak(self) -> None:
        if self._over or not self.alive or self.book.calm:
            return
        if self.world.now >= self.stalled_until:
            try:
                self.guest.signal((self.machine.session.id, self.guest.epoch, self.sent + 1))
            except PeerLost:
                self._lost()
                return
            self.sent += 1
            self.book.counts["signals"] += 1
        self.world.after(self.world.random.random(), self._speak)

    def _signalled(self, signal: Any) -> None:
        if isinstance(signal, PeerLost):
            self._lost()
            return
        if self._over:
            return
        instance, epoch, number = signal[0]
        if instance != self.met or epoch != self.guest.epoch:
            self.world.fail(f"{self} hears a signal of epoch {epoch}, of an owner that it has lost")
        self.heard += 1
        if number != self.heard:
            self.world.fail(f"{self} hears signal {number} of its owner, and expects {self.heard}")

    def _depart(self) -> None:
        if not self._over and not self.book.calm:
            self._end_soon()

    def _lost(self) -> None:
        """Whoever is told that the other one is lost may take its time to close."""
        if not self._over and self.guest.epoch:
            self._over = True
            self.book.counts["pairs lost"] += 1
            self.book.replace(self)

    def _end_soon(self) -> None:
        self._over = True
        self.world.after(self.world.random.random() * PAUSE, self._go)

    def _go(self) -> None:
        if self.alive:
            self.leave()
            self.book.replace(self)

    @property
    def idle(self) -> bool:
        """Whether it has the seat, or knows that it has not."""
        server = self.host.end.actor if self.host.end is not None else None
        if self._over or not self.guest.epoch or not isinstance(server, SimulatedOwner):
            return True
        holder: Any = server.owner.holder
        return holder is not None and holder.id == self.machine.session.id and self.guest.epoch == server.owner.epoch
