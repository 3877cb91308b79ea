"""Both ends of a session over a wire that loses, repeats and cuts: nothing is lost, nothing runs twice."""

from __future__ import annotations

import random
from collections import deque
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.frames import FrameKind, kind_of, unpack_numbers
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Inbox, Received, Session
from remit.codec import UNDECODABLE, EventMessage, MessagePack
from remit.transport import SERVER, Down, Frame, Up

CODEC = MessagePack()
FRAME = 1 << 20


def acceptor(**options) -> ServerSessions:
    return ServerSessions(
        lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=FRAME, liveness_timeout=0.0, **options
    )


@dataclass
class World:
    """One client and a server that may be replaced, joined by two queues, under a clock of its own."""

    seed: int = 0
    loss: float = 0.0
    repeat: float = 0.0
    window: int = 64
    now: float = 0.0
    handled: list[int] = field(default_factory=list)
    again: list[int] = field(default_factory=list)
    answers: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.server = acceptor()
        self.client = ClientSession(CODEC, Outbox(CODEC, max_frame=FRAME, window_events=self.window), max_frame=FRAME)
        self.token = 0
        self.up: deque[bytes] = deque()
        self.down: deque[bytes] = deque()
        self.connect()

    def connect(self, *, tell: bool = True) -> None:
        self.up.clear()
        self.down.clear()
        if tell:
            self.server.handle_arrival(Down(self.token, "cut"), self.now)
            self.client.handle_arrival(Down(SERVER, "cut"), self.now)
        self.token += 1
        self.client.handle_arrival(Up(SERVER), self.now)

    def replace_server(self) -> None:
        self.server = acceptor()
        self.connect()

    def emit(self, *numbers: int) -> None:
        for number in numbers:
            self.client.session.outbox.pending.append(CODEC.encode("n", (number,), {}, {}))

    def carry(self, wire: deque[bytes], frame: bytes) -> None:
        if self.chance.random() >= self.loss:
            wire.append(frame)
            if self.chance.random() < self.repeat:
                wire.append(frame)

    def step(self, seconds: float = 0.1) -> None:
        self.now += seconds
        self.client.handle_timeouts(self.now)
        while (frame := self.client.next_frame()) is not None:
            self.client.session.mark_sent(self.now)
            self.carry(self.up, frame)
        while self.up:
            self.server.handle_arrival(Frame(self.token, self.up.popleft()), self.now)
        self.serve()
        self.server.handle_timeouts(self.now, drained=True)
        for peer, frame in self.server.unknown_peer_replies:
            if peer == self.token:
                self.carry(self.down, frame)
        self.server.unknown_peer_replies.clear()
        for session in list(self.server.writable):
            while session.peer == self.token and (frame := session.next_frame()) is not None:
                session.mark_sent(self.now)
                self.carry(self.down, frame)
        self.server.writable.clear()
        while self.down:
            self.client.handle_arrival(Frame(SERVER, self.down.popleft()), self.now)
        while self.client.ready:
            received = self.client.ready.popleft()
            self.answers += [wire.args[0] for wire in received.events if wire]
            received.mark_handled(len(received.events))

    def serve(self) -> None:
        while self.server.ready:
            received = self.server.ready.popleft()
            (self.again if received.redelivered else self.handled).extend(
                wire.args[0] for wire in received.events if wire and wire.name != UNDECODABLE
            )
            received.mark_handled(len(received.events))
            self.server.writable[received.session] = None

    def settle(self, steps: int = 400) -> None:
        for _ in range(steps):
            if self.client.session.outbox.all_done:
                return
            self.step()
        raise AssertionError(f"not drained after {steps} steps: {self.client.session.outbox.unconfirmed} left")


def test_events_arrive_once_and_in_order() -> None:
    world = World()
    world.emit(*range(1000))
    world.settle()
    assert world.handled == list(range(1000))


def test_a_new_session_sends_events_behind_its_hello() -> None:
    world = World()
    world.emit(1)
    world.step()
    assert world.handled == [1]


@given(
    seed=st.integers(0, 10_000),
    loss=st.floats(0, 0.4),
    repeat=st.floats(0, 0.3),
    cuts=st.lists(st.booleans(), max_size=6),
)
@settings(max_examples=60, deadline=None)
def test_nothing_is_lost_or_repeated_by_a_bad_wire(seed: int, loss: float, repeat: float, cuts: list[bool]) -> None:
    world = World(seed=seed, loss=loss, repeat=repeat)
    numbers = iter(range(10_000))
    sent = []
    for told in cuts:
        part = [next(numbers) for _ in range(world.chance.randrange(150))]
        world.emit(*part)
        sent += part
        for _ in range(world.chance.randrange(4)):
            world.step()
        world.connect(tell=told)
    world.settle(4000)
    # Where the first HELLO was lost, nobody knows which server what was sent behind it came to.
    assert world.again + world.handled == sent


def test_lost_frames_alone_are_repaired_by_probing() -> None:
    world = World()
    world.emit(1)
    world.step()
    world.loss = 1.0
    world.emit(2, 3)
    world.step()
    world.loss = 0.0
    world.settle()
    assert world.handled == [1, 2, 3]


def test_a_new_server_gets_what_the_old_one_had_not_confirmed_marked_as_redelivered() -> None:
    world = World()
    world.emit(1)
    world.settle()
    world.emit(2)
    world.client.handle_timeouts(world.now)
    frame = world.client.next_frame()
    assert frame is not None
    world.client.session.mark_sent(world.now)
    world.server.handle_arrival(Frame(world.token, frame), world.now)
    world.serve()
    assert world.handled == [1, 2]
    world.replace_server()
    world.emit(3)
    world.settle()
    assert world.again == [2]
    assert world.handled == [1, 2, 3]


def test_a_server_that_forgot_a_session_remembers_its_number() -> None:
    world = World()
    world.emit(1)
    world.settle()
    world.server.handle_arrival(Down(world.token, "gone"), world.now)
    world.now += 1000
    world.server.handle_timeouts(world.now, drained=True)
    assert not world.server.sessions
    world.emit(2)
    world.connect()
    world.settle()
    assert world.handled == [1, 2]


def test_a_session_that_nobody_remembers_is_refused_and_nothing_runs_twice() -> None:
    world = World()
    world.emit(1)
    world.settle()
    world.server.sessions.clear()
    world.server.handle_arrival(Down(world.token, "cut"), world.now)
    world.emit(2)
    world.client.handle_timeouts(world.now)
    frame = world.client.next_frame()
    assert frame is not None
    world.connect()
    for _ in range(5):
        world.step()
    assert world.client.state is ConnectionState.REFUSED
    assert world.handled == [1]
    assert [fate for fate, _ in world.client.session.outbox.unfinished()] == ["unknown"]


def test_the_server_answers_one_client() -> None:
    world = World()
    world.emit(1)
    world.step()
    (session,) = world.server.sessions.values()
    for number in range(200):
        session.outbox.pending.append(CODEC.encode("answer", (number,), {}, {}))
    world.server.writable[session] = None
    for _ in range(20):
        world.server.writable[session] = None
        world.step()
    assert world.answers == list(range(200))
    assert session.outbox.all_done


def test_the_window_bounds_what_is_under_way() -> None:
    world = World(window=10)
    world.emit(*range(100))
    world.client.handle_timeouts(world.now)
    while world.client.next_frame() is not None:
        world.client.session.mark_sent(world.now)
    assert world.client.session.outbox.unconfirmed == 10
    assert len(world.client.session.outbox.pending) == 90


@pytest.mark.parametrize(
    ("frame", "reason"),
    [
        (b"", "garbage"),
        (b"GET / HTTP/1.1\r\n", "garbage"),
        (b"RM\x07\x01", "version"),
        (b"RM\x02\xee", "kind"),
        (b"RM\x02\x06\xc1\xc1", "malformed"),
        (b"RM\x02\x09\x92\xa1\xff\x01", "malformed"),
    ],
)
def test_a_bad_frame_is_counted_and_the_server_goes_on(frame: bytes, reason: str) -> None:
    world = World()
    world.emit(1)
    world.step()
    world.server.handle_arrival(Frame(world.token, frame), world.now)
    assert world.server.rejected == {reason: 1}
    world.emit(2)
    world.settle()
    assert world.handled == [1, 2]


@given(st.binary(max_size=200))
def test_no_bytes_can_break_either_end(garbage: bytes) -> None:
    world = World()
    world.emit(1)
    world.step()
    for frame in (garbage, b"RM\x02" + garbage):
        world.server.handle_arrival(Frame(world.token, frame), world.now)
        world.client.handle_arrival(Frame(SERVER, frame), world.now)


@pytest.mark.parametrize(
    "event", [b"\xc1", b"\x92\xa1\xff\x90", b"\x92\xa1n" + b"\x91" * 10_000], ids=["no", "text", "deep"]
)
def test_an_undecodable_event_is_dropped_alone_and_not_requested_again(event: bytes) -> None:
    world = World()
    world.emit(1)
    world.step()
    outbox = world.client.session.outbox
    outbox.pending.append(event)
    world.emit(3)
    world.settle()
    assert world.server.rejected == {"undecodable": 1}
    world.emit(4)
    world.settle()
    assert world.handled == [1, 3, 4]


def test_an_unreadable_frame_does_not_acknowledge_the_events_that_wait_before_it() -> None:
    world = World()
    world.emit(1)
    world.step()  # This frame is sent before the WELCOME; it is handled.
    outbox = world.client.session.outbox
    world.serve = lambda: None  # type: ignore[method-assign]  # The listeners are slow from now on.
    world.emit(2)
    world.step()
    outbox.pending.append(b"\xc1")
    for _ in range(4):
        world.step()
    assert (outbox.received, outbox.done) == (3, 1)
    del world.serve  # type: ignore[attr-defined]
    world.settle()
    assert outbox.done == 3


def test_events_that_are_handled_while_an_acknowledgement_is_made_are_acknowledged_next() -> None:
    session = Session(b"id", CODEC, Outbox(CODEC, max_frame=FRAME))

    class HandledMeanwhile(Inbox):
        def __getattribute__(self, name: str) -> Any:
            value = super().__getattribute__(name)
            if name == "done" and not value and received.events:  # Here the listener returns, in another thread.
                received.mark_handled(1)
            return value

    session.inbox = HandledMeanwhile()
    received = Received(session, [EventMessage("event")], last=1)
    received.accept()
    assert unpack_numbers(FrameKind.ACK, session.next_frame() or b"") == (1, 0)
    session.mark_sent(0.0)
    following = session.next_frame() or b""
    assert kind_of(following) is FrameKind.ACK
    assert unpack_numbers(FrameKind.ACK, following) == (1, 1)
