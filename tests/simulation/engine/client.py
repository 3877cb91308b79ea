"""Simulated client: the real pump, requests, replies and subscriptions of one, driven as `Client` drives them."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any, Final

from engine.delivery_oracle import Book, Stream, TracedOutbox
from engine.network import CAPABILITIES, ClientEnd, Host
from engine.virtual_clock import SPIN, Actor, SimulationFailed, World
from remit._io.dispatcher import Dispatcher
from remit._io.pump import ClientPump
from remit._patterns.event_router import EventRouter
from remit._patterns.names import PROGRESS, REPLY, REQUEST_NOTE, RESERVED
from remit._patterns.request_reply import RequestClient
from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.session import Received
from remit.codec import EventMessage
from remit.errors import EmitError

__all__ = ["SimulatedClient"]


ACK_DELAY: Final = 0.005
"""Seconds that the acknowledgements of some clients wait for company, as those of threaded ones do."""
LONG: Final = 3600.0
"""Seconds that an end would sleep if nothing were due."""
SLOW: Final = 0.1
"""Share of a client's frames after which its listeners take up to a second."""


class SimulatedClient(Actor):
    """A client: asks, emits and listens. What it is there for is the business of those who inherit from it."""

    def __init__(self, world: World, host: Host, book: Book, *, window: int) -> None:
        super().__init__(world)
        self.book = book
        self.host = host
        self.window = window
        self.deaf_until = 0.0
        """When its listeners, in a thread of their own, take the next event."""
        self.answers: Stream | None = None
        """What came last from the server: another stream for each session that the server began."""
        self.posted = b""
        """The question that was asked last, as it travels."""
        self.outbox = TracedOutbox(book.codec, max_frame=CAPABILITIES.max_frame, window_events=window)
        self.machine = ClientSession(book.codec, self.outbox, max_frame=CAPABILITIES.max_frame)
        self.machine.session.ack_delay = world.random.choice((0.0, ACK_DELAY))
        self.requests = RequestClient(book.codec, self.outbox, self._post, self._cancel, world.clock)
        self.router = EventRouter()
        self.router.io_handlers[REPLY] = self.requests.on_reply
        self.router.io_handlers[PROGRESS] = self.requests.on_progress
        self.router.io_handlers[REQUEST_NOTE] = self.requests.on_note
        self.dispatcher = Dispatcher(self.router, lambda: self._dispatch, lambda: None)
        self.pump = ClientPump(self.machine, self._connect(), self._connect, clock=world.clock)
        self.wake(world.now)

    def _connect(self) -> ClientEnd:
        return ClientEnd(self, self.host)

    @property
    def end(self) -> ClientEnd:
        """Its link."""
        link = self.pump.link
        assert isinstance(link, ClientEnd)
        return link

    # -- speaking ----------------------------------------------------------------------------------------------

    def emit(self, name: str, /, *args: Any) -> None:
        """Emit an event, and look at once: an idle client's event does not wait."""
        if not self.alive:
            raise EmitError("this client is dead")
        self.outbox.pending.append(self.book.codec.encode(name, args, {}, {}))
        self.wake(self.world.now)

    def submit(self, name: str, /, *args: Any, timeout: float | None = None, idempotent: bool = False) -> Future[Any]:
        """Ask a question."""
        bound = float("inf") if timeout is None else timeout
        return self.requests.submit(name, args, {}, {}, timeout=bound, idempotent=idempotent, on_progress=None)

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard."""
        return self.world.now - self.machine.session.last_received_at

    def _post(self, name: str, data: bytes) -> bool:
        self.posted = data
        self.outbox.pending.append(data)
        self.wake(self.world.now)
        return True

    def _cancel(self, request: int) -> None:
        self.outbox.abandoned.append(request)
        self.wake(self.world.now)

    # -- acting ------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Pump until there is nothing more to do now, then say when to come again."""
        session = self.machine.session
        for _ in range(SPIN):
            drained = self.pump.exchange()
            self.dispatcher.process(self.machine, self.requests, self.world.now)
            handled = False
            while self.world.now >= self.deaf_until and len(self.dispatcher):
                self.dispatcher.dispatch_frame()
                handled = True
            owes = (
                session.ack_due
                and not session.ack_delay
                and self.machine.state is ConnectionState.ESTABLISHED
                and not session.send_blocked
            )
            if (
                drained
                and not handled
                and not owes
                and not (self.machine.has_sendable_events() and not session.send_blocked)
            ):
                break
        else:
            raise SimulationFailed(f"{self} cannot come to rest")
        restarts, begun = self.machine.server_restarts, self.book.begun_late[session.id]
        if restarts > begun:
            raise SimulationFailed(f"{self} counted {restarts} restarts of its server, after {begun}")
        if self.machine.refusal is not None:
            raise SimulationFailed(f"{self} was refused: {self.machine.refusal}")
        self.settled()
        self.pump.wait(LONG)
        self.wake(min(self.world.now + self.end.timeout, max(self.world.now, self.requests.open.next_deadline)))
        if len(self.dispatcher):
            self.wake(self.deaf_until)

    def settled(self) -> None:
        """Look at what has become of all that, once everything possible has been done."""

    def _dispatch(self, received: Received) -> int:
        wires = [wire for wire in received.events if wire is not None]
        for wire in wires:
            if not wire.name.startswith(RESERVED):
                self._hear(self.book.streams[wire.name], [wire])
            for handler in self.router.handlers.get(wire.name, ()):
                handler(wire, None, received.redelivered)
            if self.world.random.random() < SLOW:
                self.deaf_until = self.world.now + self.world.random.random()
        received.mark_handled(len(received.events))
        return len(wires)

    def _hear(self, stream: Stream, wires: Sequence[EventMessage]) -> None:
        if stream is not self.answers:
            if self.answers is not None and stream.serial < self.answers.serial:
                raise SimulationFailed(f"{self} hears of a session that ended: {stream.name!r}")
            self.answers = stream
        stream.hand(self, wires, False)

    # -- the end -----------------------------------------------------------------------------------------------

    def crash(self) -> None:
        """End without a word."""
        self.alive = False
        self.end.close(0.0)

    def leave(self) -> None:
        """End with a word."""
        self.machine.queue_bye()
        self.pump.flush()
        self.crash()

    def successor(self) -> SimulatedClient:
        """Return another one that does the same."""
        return type(self)(self.world, self.host, self.book, window=self.window)

    def check(self) -> None:
        """Compare what it knows with what happened."""

    @property
    def idle(self) -> bool:
        """Whether all that it sent and asked has come to its end."""
        return self.outbox.all_done and not len(self.requests.open)

    def calm(self) -> None:
        """There will be no more faults."""

    def __str__(self) -> str:
        machine = self.machine
        return (
            f"{type(self).__name__}, {machine.state.value}, generation {machine.session.generation}: "
            f"{self.outbox.last} numbered, {self.outbox.done} done, {len(self.requests.open)} questions open"
        )
