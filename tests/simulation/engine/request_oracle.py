"""Simulated questions: who asked what, how often it ran, and whether it ended as Remit promises."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any, Final

from engine.client import SimulatedClient
from engine.delivery_oracle import Book
from engine.virtual_clock import NEVER, World
from remit._protocol.client_session import ConnectionState
from remit.errors import DeadLetter, NoListener, PeerLost, RequestError, RequestFailed, RequestTimeout

__all__ = ["FAILS", "UNHEARD", "Asker", "Inquiry"]


FAILS: Final = 17
"""Every such question makes its listener raise."""
UNHEARD: Final = 19
"""To every such question nobody listens."""
SLACK: Final = 0.01
"""Seconds by which an end may come later than its deadline, or earlier by what milliseconds round off."""
CANCELLED: Final = 0.05
"""Share of the questions that are given up at some time."""
TIMEOUTS: Final = (0.05, 0.5, 2.0, 10.0, NEVER, NEVER)


class Inquiry:
    """One question of one client."""

    __slots__ = ("_world", "data", "deadline", "ended", "idempotent", "losses", "runs", "serial", "taken_back")

    def __init__(self, world: World, serial: int, deadline: float, *, idempotent: bool) -> None:
        self._world = world
        self.serial = serial
        self.deadline = deadline
        self.idempotent = idempotent
        self.data = b""
        self.runs = 0
        """How often its listener, or a worker's handler, has begun."""
        self.losses = 0
        """How many workers were lost with it."""
        self.ended = False
        self.taken_back = False
        """Given up before it was sent."""

    def run(self) -> None:
        """A listener is called. Raises SimulationFailed if it must not be."""
        self.runs += 1
        if self.taken_back:
            self._world.fail(f"question {self.serial} runs, although it was taken back before it was sent")

    def run_once(self) -> None:
        """A listener is called that may not be called twice, unless the question says so."""
        self.run()
        if self.runs > 1 and not self.idempotent:
            self._world.fail(f"question {self.serial} runs for the second time, but may not")


class Asker:
    """What one client asks. ``judge`` compares an answer with what happened."""

    def __init__(
        self, client: SimulatedClient, book: Book, judge: Callable[[Inquiry, Any], None], *, once: bool = True
    ) -> None:
        self.open: dict[Inquiry, Future[Any]] = {}
        self._client = client
        self._book = book
        self._world = client.world
        self._judge = judge
        self._once = once

    def ask(self, name: str) -> None:
        """Ask something under this name."""
        client, random, now = self._client, self._world.random, self._world.now
        timeout, idempotent = random.choice(TIMEOUTS), random.random() < 0.5
        inquiry = Inquiry(self._world, self._book.another(), now + timeout, idempotent=idempotent)
        self._book.inquiries[inquiry.serial] = inquiry
        self._book.counts["questions"] += 1
        future = client.submit(name, inquiry.serial, timeout=timeout, idempotent=idempotent)
        inquiry.data = client.posted
        self.open[inquiry] = future
        future.add_done_callback(partial(self._ended, inquiry))
        if random.random() < CANCELLED:
            self._world.after(random.random() * min(timeout, 1.0), self._give_up, inquiry)

    def _give_up(self, inquiry: Inquiry) -> None:
        future = self.open.get(inquiry)
        if future is not None and self._client.alive:
            inquiry.taken_back = inquiry.data in self._client.outbox.pending and not inquiry.runs
            future.cancel()
            inquiry.taken_back = inquiry.taken_back and inquiry.data not in self._client.outbox.pending
            self._book.counts["questions given up"] += 1

    def _ended(self, inquiry: Inquiry, future: Future[Any]) -> None:
        if inquiry.ended:
            self._world.fail(f"question {inquiry.serial} ended twice")
        inquiry.ended = True
        del self.open[inquiry]
        if future.cancelled():
            return
        now, error = self._world.now, future.exception()
        if now > inquiry.deadline + SLACK and now > self._client.stalled_until + SLACK:
            self._world.fail(f"question {inquiry.serial} ended {now - inquiry.deadline} s after its deadline")
        if error is None:
            if not inquiry.runs:
                self._world.fail(f"question {inquiry.serial} was answered, but never ran")
            self._judge(inquiry, future.result())
        else:
            self._excuse(inquiry, error)
        self._book.counts["questions answered" if error is None else type(error).__name__] += 1

    def _excuse(self, inquiry: Inquiry, error: BaseException) -> None:
        """Raise SimulationFailed unless the question may end with this error."""
        serial, now = inquiry.serial, self._world.now
        if isinstance(error, DeadLetter):
            fine = inquiry.losses >= self._book.max_attempts
        elif isinstance(error, RequestTimeout):
            fine = now >= inquiry.deadline - SLACK
        elif isinstance(error, PeerLost):
            fine = not inquiry.idempotent and (
                self._client.machine.disconnects + self._client.machine.server_restarts > 0
            )
        elif isinstance(error, RequestFailed):
            fine = serial % FAILS == 0 and inquiry.runs > 0
        elif isinstance(error, NoListener):
            fine = serial % UNHEARD == 0
        else:
            fine = isinstance(error, RequestError) and self._book.refusing
        if not fine:
            self._world.fail(f"question {serial} ended with {error!r}, which nothing excuses")

    def check(self) -> None:
        """Raise SimulationFailed if a question is open that must have ended."""
        client, now = self._client, self._world.now
        if not client.alive or now <= client.stalled_until + SLACK:
            return
        down = client.machine.state is ConnectionState.DISCONNECTED
        for inquiry in self.open:
            if now > inquiry.deadline + SLACK:
                self._world.fail(f"question {inquiry.serial} is open {now - inquiry.deadline} s too long")
            if down and not inquiry.idempotent and inquiry.data in client.outbox.framed:
                self._world.fail(f"question {inquiry.serial} was lost with its connection, and nobody was told")
