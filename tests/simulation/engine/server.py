"""Simulated server: the real pump, replies and publications of one, driven as `Server` drives them."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from typing import Any, Final

from engine.delivery_oracle import Book, Stream, TracedOutbox
from engine.network import CAPABILITIES, Host, ServerEnd
from engine.virtual_clock import SPIN, Actor, SimulationFailed, World
from remit._io.pump import ServerPump
from remit._patterns.event_router import EventRouter
from remit._patterns.names import RESERVED
from remit._patterns.request_reply import RequestServer
from remit._protocol.frames import Hello
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Received, Session
from remit.codec import Codec, EventMessage
from remit.errors import EmitError
from remit.event import Sender

__all__ = ["SimulatedServer"]


PATIENCE: Final = 15.0
"""Seconds of silence after which clients open another link."""
LONG: Final = 3600.0
"""Seconds that an end would sleep if nothing were due."""
FULL_WAIT: Final = 0.01
"""Seconds after which a server offers again what the network had no room for."""


class CountedSessions(ServerSessions):
    """Sessions of a server, whose late beginnings the book counts."""

    def __init__(self, book: Book, outbox: Callable[[Codec, int], Outbox], **options: Any) -> None:
        super().__init__(outbox, **options)
        self._book = book

    def _start_session(self, hello: Hello, *state: Any) -> Session:
        self._book.begun_late[hello.session] += hello.generation > 1
        return super()._start_session(hello, *state)


class SimulatedServer(Actor):
    """A server instance: handles at most ``limit`` events a tick, and answers events now and then."""

    look = LONG
    """Seconds between two looks at what time demands, beyond what the link asks for."""

    def __init__(self, world: World, host: Host, book: Book, *, limit: int, window: int, ttl: float) -> None:
        super().__init__(world)
        self.book = book
        self.host = host
        self.limit = limit
        self.deaf_until = 0.0
        """When it is ticked again; meanwhile its keeper alone looks after the link."""
        self.serial = book.another()
        self.machine = CountedSessions(
            book,
            lambda codec, largest: TracedOutbox(codec, max_frame=largest, window_events=window),
            max_frame=CAPABILITIES.max_frame,
            liveness_timeout=PATIENCE,
            session_ttl=ttl,
        )
        end = ServerEnd(self, host)
        self.pump = ServerPump(self.machine, end, clock=world.clock)
        self.router = EventRouter()
        self.answering = RequestServer(self.router, self.answer, self.post)
        self._streams: dict[Session, Stream] = {}
        self._end = end
        host.listen(end)
        self.wake(world.now)

    # -- acting ------------------------------------------------------------------------------------------------

    def act(self) -> None:
        """Tick: pump, handle, confirm; then say when to come again."""
        pump, machine, ticked = self.pump, self.machine, self.world.now >= self.deaf_until
        left = self.limit if ticked else 0
        for _ in range(SPIN):
            drained = pump.exchange(hold_back=left > 0)
            while left > 0 and machine.ready:
                received = machine.ready.popleft()
                if machine.closed:
                    self._tell_of_sessions(received.session)
                left -= self._handle(received, left)
            if ticked:
                self._tell_of_sessions()
            if drained:
                break
        else:
            raise SimulationFailed(f"{self} cannot come to rest")
        if ticked:
            self.advance()
        pump.flush()
        pump.wait(LONG)
        busy = machine.writable or (machine.ready and ticked)
        self.wake(self.world.now + min(self._end.timeout, FULL_WAIT if busy else self.look))
        if not ticked:
            self.wake(self.deaf_until)

    def advance(self) -> None:
        """Do what a tick does once all that arrived has been handled."""

    def _tell_of_sessions(self, heard: Session | None = None) -> None:
        machine = self.machine
        for session in machine.pop_closed((heard,)):
            self._streams.pop(session, None)
            for on_closed in self.router.session_closed:
                on_closed(session)
        while machine.cancelled_requests:
            cancelled = machine.cancelled_requests.popleft()
            for on_cancelled in self.router.request_cancelled:
                on_cancelled(*cancelled)

    def _handle(self, received: Received, limit: int) -> int:
        """Handle one frame's events, or the first of them, as `Server` does."""
        session, redelivered = received.session, received.redelivered
        count = min(limit, len(received.events))
        wires = [wire for wire in received.events[:count] if wire is not None]
        for name, run in groupby(wires, _name):
            if name.startswith(RESERVED):
                sender = self._sender(session)
                for wire in run:
                    for handler in self.router.handlers[name]:
                        handler(wire, sender, redelivered)
                continue
            self.book.streams[name].hand(self, list(run), redelivered)
            if self.world.random.random() < self.book.answering and self._has(session):
                self._speak(session)
        received.mark_handled(count)
        if received.events:
            self.machine.ready.appendleft(received)
        self.machine.writable[session] = None
        return len(wires)

    # -- the way back ------------------------------------------------------------------------------------------

    def answer(self, wire: EventMessage, sender: Sender | None) -> tuple[bool, Any]:
        """Call the listeners of a question; say whether there are any, and what the first one returned."""
        return False, None

    def post(self, session: Session, name: str, args: tuple[Any, ...]) -> None:
        """Send an event to a client. Raises EmitError if its session has ended."""
        if not self._has(session):
            raise EmitError("the session has ended")
        session.outbox.pending.append(session.codec.encode(name, args, {}, {}))
        self.has_more(session)

    def has_more(self, session: Session) -> None:
        """Something waits to be sent to a client."""
        self.machine.writable[session] = None
        self.wake(self.world.now)

    def _has(self, session: Session) -> bool:
        return self.machine.sessions.get(session.id) is session

    def _sender(self, session: Session) -> Sender:
        if session.sender is None:
            session.sender = Sender(session, _mute)
        return session.sender

    def _speak(self, session: Session) -> None:
        if session not in self._streams:
            self._streams[session] = self.book.open()
        self._streams[session].emit(self.world.random.randrange(1, self.book.answers), session.outbox)

    # -- the end -----------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Compare what is confirmed with what was handled."""
        for session, stream in self._streams.items():
            outbox = session.outbox
            assert isinstance(outbox, TracedOutbox)
            stream.confirm(outbox.streamed())

    def busy(self, sessions: set[bytes]) -> list[str]:
        """Name what has not drained to its clients, of all these sessions."""
        return [
            f"answers {stream.name!r}: {stream.emitted} emitted, {stream.handled} handled, {stream.confirmed} confirmed"
            for session, stream in self._streams.items()
            if session.id in sessions and not stream.emitted == stream.handled == stream.confirmed
        ]

    def calm(self) -> None:
        """There will be no more faults."""

    def crash(self) -> None:
        """End without a word."""
        self.alive = False
        self._end.close(0.0)

    def leave(self) -> None:
        """End with a word."""
        self.machine.queue_bye("closed")
        self.pump.flush()
        self.crash()

    def __str__(self) -> str:
        return (
            f"{type(self).__name__} {self.serial} with {len(self.machine.sessions)} sessions, "
            f"{len(self.machine.ready)} frames to be handled"
        )


def _name(wire: EventMessage) -> str:
    return wire.name


def _mute(name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise NotImplementedError
