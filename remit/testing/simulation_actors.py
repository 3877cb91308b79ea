"""Simulated ends: the real endpoints and protocol machines, driven as `Client` and `Server` drive them."""

from __future__ import annotations

from typing import Final

from remit.endpoint import ClientEndpoint, ServerEndpoint
from remit.protocol.acceptor import Acceptor
from remit.protocol.connector import Connector
from remit.protocol.outbox import Outbox
from remit.protocol.session import Received, Session
from remit.testing.simulation_ledger import Book, Stream
from remit.testing.simulation_network import CAPABILITIES, ClientEnd, Host, ServerEnd
from remit.testing.simulation_world import Actor, SimulationFailed, World

__all__ = ["SimulatedClient", "SimulatedServer"]

PATIENCE: Final = 15.0
"""Seconds of silence after which clients open another link."""
ACK_DELAY: Final = 0.005
"""Seconds that the acknowledgements of some clients wait for company, as those of threaded ones do."""
LONG: Final = 3600.0
"""Seconds that an end would sleep if nothing were due."""
SPIN: Final = 1000
"""Rounds in one go after which an end that cannot come to rest has failed."""
SLOW: Final = 0.1
"""Share of a client's frames after which its listeners take up to a second."""
FULL_WAIT: Final = 0.01
"""Seconds after which a server offers again what the network had no room for."""


class SimulatedClient(Actor):
    """A client: emits to its server, and listens."""

    def __init__(self, world: World, host: Host, book: Book, *, window: int) -> None:
        super().__init__(world)
        self.book = book
        self.stream = book.open()
        self.host = host
        self.budget = 0
        """Events that it has yet to emit."""
        self.deaf_until = 0.0
        """When its listeners, in a thread of their own, take the next event."""
        self.answers: Stream | None = None
        """What came last from the server: another stream for each session that the server began."""
        outbox = Outbox(book.codec, max_frame=CAPABILITIES.max_frame, window_events=window)
        self.machine = Connector(book.codec, outbox, max_frame=CAPABILITIES.max_frame)
        self.machine.session.ack_delay = world.random.choice((0.0, ACK_DELAY))
        self.endpoint = ClientEndpoint(self.machine, self._connect(), self._connect, clock=world.clock)
        self.wake(world.now)

    def _connect(self) -> ClientEnd:
        return ClientEnd(self, self.host)

    @property
    def outbox(self) -> Outbox:
        """What is on its way to the server."""
        return self.machine.session.outbox

    def emit(self, count: int) -> None:
        """Emit events, and look at once: an idle client's event does not wait."""
        self.stream.emit(count, self.outbox)
        self.wake(self.world.now)

    def act(self) -> None:
        """Pump until there is nothing more to do now, then say when to come again."""
        endpoint, machine = self.endpoint, self.machine
        for _ in range(SPIN):
            drained = endpoint.pump()
            handled = False
            while self.world.now >= self.deaf_until and (received := endpoint.events()):
                self._hear(received)
                handled = True
            stuck = machine.session.stuck
            if drained and not handled and not (machine.sendable() and not stuck):
                break
        else:
            raise SimulationFailed(f"{self} cannot come to rest")
        self.stream.confirm(self.outbox.done)
        if machine.refusal is not None:
            raise SimulationFailed(f"{self} was refused: {machine.refusal}")
        endpoint.wait(LONG)
        self.wake(self.world.now + self.end.timeout)
        if machine.ready:
            self.wake(self.deaf_until)

    @property
    def end(self) -> ClientEnd:
        """Its link."""
        link = self.endpoint.link
        assert isinstance(link, ClientEnd)
        return link

    def _hear(self, received: Received) -> None:
        session, wires, count, _ = received
        stream = self.book.streams[wires[0].name]
        if stream is not self.answers:
            if self.answers is not None and stream.serial < self.answers.serial:
                raise SimulationFailed(f"client {self.stream.name!r} hears of a session that ended: {stream.name!r}")
            self.answers = stream
        stream.hand(self, wires, False)
        session.finish(count)
        if self.world.random.random() < SLOW:
            self.deaf_until = self.world.now + self.world.random.random()

    def crash(self) -> None:
        """End without a word."""
        self.alive = False
        self.end.close(0.0)

    def leave(self) -> None:
        """End with a word."""
        self.machine.bye()
        self.endpoint.flush()
        self.crash()

    @property
    def idle(self) -> bool:
        """Whether all that was emitted is confirmed."""
        stream = self.stream
        return not self.budget and self.outbox.empty and stream.confirmed == stream.emitted == stream.handled

    def __str__(self) -> str:
        stream, machine = self.stream, self.machine
        return (
            f"the client of {stream.name!r}, {machine.state.value}, generation {machine.session.generation}: "
            f"{stream.emitted} emitted, {self.outbox.last} numbered, {stream.handled} handled, "
            f"{stream.confirmed} confirmed"
        )


class SimulatedServer(Actor):
    """A server instance: handles at most ``limit`` events a tick, and answers now and then."""

    def __init__(self, world: World, host: Host, book: Book, *, limit: int, window: int, ttl: float) -> None:
        super().__init__(world)
        self.book = book
        self.host = host
        self.limit = limit
        self.deaf_until = 0.0
        """When it is ticked again; meanwhile its keeper alone looks after the link."""
        self.machine = Acceptor(
            lambda codec, largest: Outbox(codec, max_frame=largest, window_events=window),
            max_frame=CAPABILITIES.max_frame,
            patience=PATIENCE,
            session_ttl=ttl,
        )
        end = ServerEnd(self, host)
        self.endpoint = ServerEndpoint(self.machine, end, clock=world.clock)
        self._end = end
        host.listen(end)
        self.wake(world.now)

    def act(self) -> None:
        """Tick: pump, handle, confirm; then say when to come again."""
        endpoint, machine = self.endpoint, self.machine
        left = self.limit if self.world.now >= self.deaf_until else 0
        for _ in range(SPIN):
            drained = endpoint.pump()
            while left > 0 and (received := endpoint.events()):
                left -= self._handle(received, left)
            if drained:
                break
        else:
            raise SimulationFailed(f"{self} cannot come to rest")
        endpoint.flush()
        endpoint.wait(LONG)
        busy = machine.writable or (machine.ready and self.world.now >= self.deaf_until)
        self.wake(self.world.now + min(self._end.timeout, FULL_WAIT if busy else LONG))

    def _handle(self, received: Received, limit: int) -> int:
        """Handle one frame's events, or the first of them, as `Server` does."""
        session, wires, count, redelivered = received
        if limit < len(wires):
            rest, wires = wires[limit:], wires[:limit]
            self.machine.ready.appendleft((session, rest, len(rest), redelivered))
            count = limit
        self.book.streams[wires[0].name].hand(self, wires, redelivered)
        session.finish(count)
        self.machine.writable[session] = None
        if self.world.random.random() < self.book.answering and self.machine.sessions.get(session.id) is session:
            self._answer(session)
        return len(wires)

    def _answer(self, session: Session) -> None:
        if session.sender is None:
            session.sender = self.book.open()
        stream: Stream = session.sender
        stream.emit(self.world.random.randrange(1, self.book.answers), session.outbox)

    def check(self) -> None:
        """Compare what is confirmed with what was handled."""
        for session in self.machine.sessions.values():
            if session.sender is not None:
                session.sender.confirm(session.outbox.done)

    def __str__(self) -> str:
        return f"a server with {len(self.machine.sessions)} sessions, {len(self.machine.ready)} frames to be handled"

    def busy(self, sessions: set[bytes]) -> list[str]:
        """Name the streams that have not drained to their clients, of all these sessions."""
        return [
            f"answers {stream.name!r}: {stream.emitted} emitted, {stream.handled} handled, {stream.confirmed} confirmed"
            for session in self.machine.sessions.values()
            if (stream := session.sender) is not None
            and session.id in sessions
            and not stream.emitted == stream.handled == stream.confirmed
        ]

    def crash(self) -> None:
        """End without a word."""
        self.alive = False
        self._end.close(0.0)

    def leave(self) -> None:
        """End with a word."""
        self.machine.bye("closed")
        self.endpoint.flush()
        self.crash()
