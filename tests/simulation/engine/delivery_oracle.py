"""Simulated ledger: what was emitted, handled and confirmed, and whether it is what Remit promises."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any, Final

from engine.virtual_clock import SimulationFailed
from remit._protocol.outbox import Outbox
from remit.codec import Codec, EventMessage, MessagePack

__all__ = ["Book", "Stream", "TracedOutbox"]


MARK: Final = b"stream "
"""What the name of a stream begins with."""
NAME: Final = slice(2, 2 + len(MARK))
"""Where MessagePack has it: behind the head of an array and that of a text."""


class Book:
    """All streams of a simulation, by name."""

    def __init__(self, *, answering: float, answers: int) -> None:
        self.codec: Codec = MessagePack()
        self.answering = answering
        """Share of the frames that a server answers."""
        self.answers = answers
        """Events in an answer at the most."""
        self.streams: dict[str, Stream] = {}
        self.counts: Counter[str] = Counter()
        """What happened beside the streams, for the report."""
        self.begun_late: Counter[bytes] = Counter()
        """How often a server began each session with another connection than its first."""
        self.inquiries: dict[int, Any] = {}
        """All that was asked, by number."""
        self.newsrooms: dict[int, Any] = {}
        """What each server instance published."""
        self.max_attempts = 3
        """Workers that a job may take with it."""
        self.lease = 3.0
        """Seconds of silence after which brokers and pairs take somebody for dead."""
        self.replace: Callable[[Any], None] = lambda _: None
        """Called with a client that ended by itself: another one comes in its place."""
        self.guests: dict[bytes, Any] = {}
        """Those who want a seat, by session."""
        self.workers = 0
        """How many there have been: every second one takes every job."""
        self.calm = False
        """Whether the faults are over."""
        self.refusing = False
        """Whether brokers may refuse jobs."""
        self._serial = 0

    def another(self) -> int:
        """Return a number that nothing else has in this simulation."""
        self._serial += 1
        return self._serial

    def open(self) -> Stream:
        """Return a new stream."""
        stream = Stream(len(self.streams), self.codec)
        self.streams[stream.name] = stream
        return stream


class Stream:
    """The events of one session in one direction: numbered from 1, each carrying the stream's name."""

    __slots__ = ("_codec", "confirmed", "emitted", "handled", "handler", "name", "next", "redelivered", "serial")

    def __init__(self, serial: int, codec: Codec) -> None:
        self.serial = serial
        self.name = f"stream {serial}"
        self._codec = codec
        self.emitted = 0
        self.handled = 0
        """The last number ever handled, by whichever instance."""
        self.confirmed = 0
        """The last number that the emitting side took for done."""
        self.redelivered = 0
        self.handler: object = None
        self.next = 1

    def emit(self, count: int, outbox: Outbox) -> None:
        """Emit so many more events."""
        encode, name, first = self._codec.encode, self.name, self.emitted + 1
        outbox.pending.extend([encode(name, (number,), {}, {}) for number in range(first, first + count)])
        self.emitted += count

    def hand(self, handler: object, wires: Sequence[EventMessage], redelivered: bool) -> None:
        """Events come to their listeners at ``handler``. Raises SimulationFailed unless they may come now."""
        first = wires[0].args[0]
        if handler is not self.handler:
            self._begin(handler, first, redelivered)
        numbers = [wire.args[0] for wire in wires]
        if numbers != list(range(self.next, self.next + len(wires))):
            kind = "twice" if first < self.next else "too early"
            self._fail(f"{numbers[0]}-{numbers[-1]} handled {kind}: {self.next} is next")
        if any(wire.name != self.name for wire in wires):
            self._fail(f"got the events of {next(wire.name for wire in wires if wire.name != self.name)}")
        self.next += len(wires)
        if self.next - 1 > self.handled:
            self.handled = self.next - 1
            if self.handled > self.emitted:
                self._fail(f"{self.handled} handled, only {self.emitted} emitted")

    def confirm(self, done: int) -> None:
        """The emitting side takes all up to ``done`` for done. Raises SimulationFailed unless it is."""
        if done > self.handled:
            self._fail(f"{done} confirmed, but only {self.handled} handled")
        if done < self.confirmed:
            self._fail(f"{done} confirmed, after {self.confirmed}")
        self.confirmed = done

    def _begin(self, handler: object, first: int, redelivered: bool) -> None:
        """Another instance begins where the emitting side knows of no further confirmation, marked as such."""
        if not self.confirmed < first <= self.handled + 1:
            self._fail(f"a new instance begins with {first}: {self.confirmed} confirmed, {self.handled} handled")
        if first <= self.handled and not redelivered:
            self._fail(f"{first} was handled by another instance before, but is not marked as redelivered")
        self.redelivered += self.handled + 1 - first
        self.handler, self.next = handler, first

    def _fail(self, what: str) -> None:
        raise SimulationFailed(f"events of {self.name!r}: {what}")


class TracedOutbox(Outbox):
    """An outbox that tells the events of a stream apart from what Remit itself says in between."""

    def __init__(self, codec: Codec, *, max_frame: int, window_events: int) -> None:
        super().__init__(codec, max_frame=max_frame, window_events=window_events)
        self.framed: set[bytes] = set()
        """What Remit itself said that has got its number, and is not known to be done."""
        self._others: deque[tuple[int, bytes]] = deque()
        self._passed = 0

    def streamed(self) -> int:
        """Return how many of a stream's events are done."""
        while self._others and self._others[0][0] <= self.done:
            self.framed.discard(self._others.popleft()[1])
            self._passed += 1
        return self.done - self._passed

    def _next_events(self, limit: int | None) -> list[bytes]:
        events = super()._next_events(limit)
        for number, event in enumerate(events, self.last + 1):
            if event[NAME] != MARK:
                self._others.append((number, event))
                self.framed.add(event)
        return events
