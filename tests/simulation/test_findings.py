"""What the simulator found, step by step: each of these once lost an event, ran one twice, or never came to rest."""

from __future__ import annotations

from remit._protocol import frames
from remit._protocol.client_session import HELLO_RETRY_S, ClientSession, ConnectionState
from remit._protocol.frames import FrameKind
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Session
from remit.codec import MessagePack
from remit.transport import SERVER, Down, Frame, Up

CODEC = MessagePack()
FRAME = 1 << 20
TTL = 60.0
"""Seconds for which a server keeps a session."""


class Pair:
    """A connector and an acceptor whose frames travel only when told to."""

    def __init__(self) -> None:
        self.now = 0.0
        self.token = 0
        self.server = self.another()
        self.client = ClientSession(CODEC, Outbox(CODEC, max_frame=FRAME), max_frame=FRAME)
        self.connect()

    def another(self) -> ServerSessions:
        return ServerSessions(
            lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=FRAME, liveness_timeout=0.0, session_ttl=TTL
        )

    def connect(self) -> None:
        self.token += 1
        self.client.handle_arrival(Up(SERVER), self.now)

    def emit(self, *numbers: int) -> None:
        self.client.session.outbox.pending.extend(CODEC.encode("n", (number,), {}, {}) for number in numbers)

    def answer(self, *numbers: int) -> None:
        self.session.outbox.pending.extend(CODEC.encode("n", (number,), {}, {}) for number in numbers)
        self.server.writable[self.session] = None

    @property
    def session(self) -> Session:
        return self.server.sessions[self.client.session.id]

    def from_client(self) -> list[bytes]:
        """Return what the client sends now."""
        self.client.handle_timeouts(self.now)
        sent = []
        while (frame := self.client.next_frame()) is not None:
            self.client.session.mark_sent(self.now)
            sent.append(frame)
        return sent

    def from_server(self) -> list[bytes]:
        """Return what the server sends now."""
        self.server.handle_timeouts(self.now, drained=True)
        sent = [frame for _, frame in self.server.unknown_peer_replies]
        self.server.unknown_peer_replies.clear()
        for session in list(self.server.sessions.values()):
            while session.peer is not None and (frame := session.next_frame()) is not None:
                session.mark_sent(self.now)
                sent.append(frame)
        return sent

    def to_server(self, *sent: bytes) -> None:
        for frame in sent:
            self.server.handle_arrival(Frame(self.token, frame), self.now)

    def to_client(self, *sent: bytes) -> None:
        for frame in sent:
            self.client.handle_arrival(Frame(SERVER, frame), self.now)

    def handle(self, machine: ServerSessions | ClientSession) -> list[int]:
        """Let listeners run; return what they heard."""
        heard = []
        while machine.ready:
            received = machine.ready.popleft()
            heard += [wire.args[0] for wire in received.events if wire]
            received.mark_handled(len(received.events))
        return heard

    def settle(self, seconds: float = 20.0) -> tuple[list[int], list[int]]:
        """Let all travel, for some time; return what the listeners at the server and at the client heard."""
        at_server: list[int] = []
        at_client: list[int] = []
        until = self.now + seconds
        while self.now < until:
            self.to_server(*self.from_client())
            at_server += self.handle(self.server)
            self.to_client(*self.from_server())
            at_client += self.handle(self.client)
            self.now += 0.25
        return at_server, at_client


def met() -> Pair:
    """Return a pair that has exchanged an event each way."""
    pair = Pair()
    pair.emit(1)
    assert pair.settle(1.0) == ([1], [])
    pair.answer(1)
    assert pair.settle(1.0) == ([], [1])
    return pair


def kinds(sent: list[bytes]) -> list[FrameKind]:
    return [frames.kind_of(frame) for frame in sent]


def test_a_lost_acknowledgement_of_done_is_asked_for_again() -> None:
    pair = met()
    pair.answer(2)
    pair.to_client(*pair.from_server())
    pair.to_server(*pair.from_client())
    assert (pair.session.outbox.received, pair.session.outbox.done) == (2, 1)
    assert pair.handle(pair.client) == [2]
    assert kinds(pair.from_client()) == [FrameKind.ACK]  # and it is lost
    pair.settle()
    assert pair.session.outbox.done == 2


def test_a_welcome_that_comes_twice_begins_nothing_anew() -> None:
    pair = Pair()
    pair.emit(1)
    pair.to_server(*pair.from_client())
    pair.answer(1)
    sent = pair.from_server()
    pair.to_client(*sent)
    pair.to_client(sent[0])
    assert frames.kind_of(sent[0]) is FrameKind.WELCOME
    assert pair.handle(pair.client) == [1]
    pair.answer(2)
    assert pair.settle()[1] == [2]


def test_a_lost_welcome_of_another_server_is_made_up_for() -> None:
    pair = met()
    pair.server = pair.another()
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.answer(1, 2)
    pair.from_server()  # lost
    pair.now += HELLO_RETRY_S
    assert pair.settle()[1] == [1, 2]


def test_what_a_dead_server_confirmed_comes_too_late() -> None:
    pair = met()
    pair.emit(2)
    pair.to_server(*pair.from_client())
    assert pair.handle(pair.server) == [2]
    late = pair.from_server()
    assert FrameKind.ACK in kinds(late)
    pair.server = pair.another()
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.to_client(*pair.from_server())
    pair.from_client()  # sent again, and lost
    pair.to_client(*late)
    pair.emit(3)
    assert pair.settle()[0] == [2, 3]
    assert pair.client.session.outbox.all_done


def test_what_a_dead_server_sent_comes_too_late() -> None:
    pair = Pair()
    pair.emit(1)
    pair.settle(1.0)
    pair.answer(100)
    late = pair.from_server()
    assert kinds(late) == [FrameKind.EVENTS]
    pair.server = pair.another()
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.answer(1, 2)
    welcome, *rest = pair.from_server()
    pair.to_client(welcome, *late, *rest)
    heard = pair.handle(pair.client)
    assert heard + pair.settle()[1] == [1, 2]


def test_a_late_farewell_does_not_end_the_next_connection() -> None:
    pair = met()
    pair.server.queue_bye("closed")
    pair.to_client(*pair.from_server())
    late = pair.from_client()
    assert kinds(late) == [FrameKind.BYE]
    pair.server = pair.another()
    pair.connect()
    pair.settle(1.0)
    pair.to_server(*late)
    pair.emit(2)
    assert pair.settle()[0] == [2]
    assert pair.client.refusal is None


def test_listeners_that_are_late_finish_what_came_from_another_server() -> None:
    pair = met()
    pair.answer(2, 3)
    pair.to_client(*pair.from_server())
    pair.server = pair.another()
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.to_client(*pair.from_server())
    assert pair.handle(pair.client) == [2, 3]
    pair.answer(10)
    assert pair.settle()[1] == [10]
    assert pair.session.outbox.all_done


def test_a_session_is_not_forgotten_before_its_events_were_handled() -> None:
    pair = met()
    pair.emit(2)
    pair.to_server(*pair.from_client())
    pair.server.handle_arrival(Down(pair.token, "gone"), pair.now)
    pair.client.handle_arrival(Down(SERVER, "gone"), pair.now)
    pair.now += TTL + 1
    pair.server.handle_timeouts(pair.now, drained=True)
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.to_client(*pair.from_server())
    assert pair.client.session.outbox.done == 1
    assert pair.settle()[0] == [2]
    assert pair.client.session.outbox.done == 2


def test_a_client_that_waits_for_a_welcome_rests() -> None:
    pair = met()
    pair.emit(2)
    pair.to_client(frames.head(FrameKind.IDENTIFY))
    assert pair.client.state is ConnectionState.HELLO_SENT
    assert kinds(pair.from_client()) == [FrameKind.HELLO]
    assert not pair.client.has_sendable_events()
    for _ in range(50):
        due = pair.client.handle_timeouts(pair.now)
        assert due > pair.now
        pair.now = due
        pair.from_client()


def test_what_was_sent_early_to_a_server_that_died_is_marked() -> None:
    pair = Pair()
    pair.emit(1)
    pair.to_server(*pair.from_client())
    assert pair.handle(pair.server) == [1]
    pair.server = pair.another()
    pair.connect()
    pair.to_server(*pair.from_client())
    pair.to_client(*pair.from_server())
    pair.to_server(*pair.from_client())
    received = pair.server.ready[0]
    assert [wire.args for wire in received.events if wire] == [(1,)]
    assert received.redelivered


def test_a_first_welcome_that_was_lost_is_no_new_beginning() -> None:
    pair = Pair()
    pair.emit(1)
    pair.to_server(*pair.from_client())
    assert pair.handle(pair.server) == [1]
    pair.from_server()  # the WELCOME, and it is lost
    pair.now += HELLO_RETRY_S
    assert pair.settle() == ([], [])
    assert pair.client.server_restarts == 0
    assert pair.client.session.outbox.all_done
