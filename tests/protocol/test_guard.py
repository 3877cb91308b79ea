"""Guards: what was not signed with the shared key, for this connection and direction, and just now, is not let in."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remit.codec import MessagePack
from remit.protocol import frames, guard
from remit.protocol.acceptor import Acceptor
from remit.protocol.connector import Connector, State
from remit.protocol.frames import Hello, Kind, Refuse
from remit.protocol.guard import ClientGuard, ServerGuard
from remit.protocol.outbox import Outbox
from remit.protocol.sealing import OVERHEAD, Secret
from remit.transport import SERVER, Frame, Up

KEY = Secret(b"a key of the tests")
PEER = "peer"
GENERATIONS = itertools.count(1)


def hello() -> bytes:
    return frames.pack(Hello(b"s" * 16, next(GENERATIONS), b"", 1, 0, 0, "msgpack", 1000))


class Ends:
    """A client's and a server's guard, and what passed between them."""

    def __init__(self, secret: Secret = KEY, of_server: Secret = KEY) -> None:
        self.client = ClientGuard(secret, Counter())
        self.server = ServerGuard(of_server, Counter())
        self.wire: list[tuple[str, bytes]] = []

    def up(self, frame: bytes, peer: str = PEER) -> bytes | None:
        """Carry what the client's guard makes of a frame to the server's."""
        sealed = self.client.seal(frame)
        assert sealed is not None
        self.client.sent()
        return self.carry_up(sealed, peer)

    def carry_up(self, sealed: bytes, peer: str = PEER) -> bytes | None:
        self.wire.append(("up", sealed))
        return self.server.heard(peer, sealed)

    def down(self, frame: bytes, peer: str = PEER) -> bytes | None:
        sealed = self.server.seal(peer, frame)
        assert sealed is not None
        self.server.sent(peer)
        self.wire.append(("down", sealed))
        return self.client.heard(sealed)

    def replies(self) -> list[bytes | None]:
        """Carry what the server's guard says by itself; return what the client's machine hears of it."""
        heard = []
        while self.server.replies:
            _, frame = self.server.replies.popleft()
            self.wire.append(("down", frame))
            heard.append(self.client.heard(frame))
        return heard

    def first(self) -> bytes:
        first, self.client.first = self.client.first, None
        assert first is not None
        return first

    def greet(self, peer: str = PEER) -> bytes:
        """Say HELLO, as the first frame of a channel; return it."""
        said = hello()
        assert self.up(said, peer) is None
        assert self.replies() == [None]
        assert self.carry_up(self.first(), peer) == said
        return said


@pytest.fixture
def ends() -> Ends:
    ends = Ends()
    ends.greet()
    return ends


def flipped(frame: bytes, bit: int) -> bytes:
    bit %= len(frame) * 8
    return frame[: bit // 8] + bytes((frame[bit // 8] ^ 1 << bit % 8,)) + frame[bit // 8 + 1 :]


def test_frames_pass_both_ways_in_order(ends: Ends) -> None:
    for number in range(5):
        frame = frames.ack(1, number, 0)
        assert ends.up(frame) == frame
        assert ends.down(frame) == frame
    assert not ends.client.rejected
    assert not ends.server.rejected


@given(st.binary(max_size=300))
@example(b"")
def test_a_frame_of_any_bytes_passes_and_grows_by_as_much(body: bytes) -> None:
    ends = Ends()
    ends.greet()
    frame = frames.head(Kind.EVENTS) + body
    assert ends.up(frame) == frame
    assert len(ends.wire[-1][1]) == len(frame) + OVERHEAD


@given(bit=st.integers(0), body=st.binary(max_size=100))
def test_a_flipped_bit_is_rejected_in_either_direction(bit: int, body: bytes) -> None:
    ends = Ends()
    ends.greet()
    frame = frames.head(Kind.EVENTS) + body
    sealed = ends.client.seal(frame)
    back = ends.server.seal(PEER, frame)
    assert sealed is not None
    assert back is not None
    assert ends.server.heard(PEER, flipped(sealed, bit)) is None
    assert ends.client.heard(flipped(back, bit)) is None
    assert ends.client.rejected.total() == ends.server.rejected.total() == 1
    # And it does not harm the channel: what was not altered still passes.
    assert ends.server.heard(PEER, sealed) == frame
    assert ends.client.heard(back) == frame


@given(bit=st.integers(0), step=st.integers(0, 2))
def test_a_flipped_bit_of_a_greeting_opens_nothing(bit: int, step: int) -> None:
    ends = Ends()
    said = hello()
    knock = ends.client.seal(said)
    assert knock is not None
    assert ends.server.heard(PEER, flipped(knock, bit) if step == 0 else knock) is None
    if step == 0:
        assert all(frame is None for frame in ends.replies())
        assert ends.client.seal(frames.ack(1, 0, 0)) is None
        return
    _, admit = ends.server.replies.popleft()
    assert ends.client.heard(flipped(admit, bit) if step == 1 else admit) is None
    if step == 1:
        assert ends.client.first is None
        assert ends.client.seal(frames.ack(1, 0, 0)) is None
        return
    assert ends.server.heard(PEER, flipped(ends.first(), bit)) is None
    assert ends.server.seal(PEER, frames.who()) is None


@given(cut=st.integers(1, 200))
def test_a_truncated_frame_is_rejected(cut: int) -> None:
    ends = Ends()
    ends.greet()
    sealed = ends.client.seal(frames.head(Kind.EVENTS) + bytes(100))
    assert sealed is not None
    assert ends.server.heard(PEER, sealed[:-cut]) is None
    assert ends.server.rejected.total() == 1


@given(st.binary(max_size=200))
def test_no_bytes_of_strangers_pass_or_raise(garbage: bytes) -> None:
    ends = Ends()
    ends.greet()
    for frame in (garbage, *(frames.head(kind) + garbage for kind in Kind)):
        assert ends.server.heard(PEER, frame) is None
        assert ends.server.heard("another", frame) is None
        assert ends.client.heard(frame) is None


@given(which=st.lists(st.integers(0, 100), min_size=1, max_size=30), peer=st.sampled_from([PEER, "another"]))
def test_whatever_passed_before_never_passes_again(which: list[int], peer: str) -> None:
    """Nor on another connection, in the other direction, after another greeting, or at a server that began anew."""
    ends = Ends()
    ends.greet()
    for number in range(3):
        ends.up(frames.ack(1, number, 0))
        ends.down(frames.ack(1, number, 0))
    ends.greet()
    ends.up(frames.ack(2, 0, 0))
    recorded = [frame for _, frame in ends.wire]
    new_server = ServerGuard(KEY, Counter())
    new_client = ClientGuard(KEY, Counter())
    new_client.seal(hello())
    for number in which:
        frame = recorded[number % len(recorded)]
        assert ends.server.heard(peer, frame) is None
        assert ends.client.heard(frame) is None
        assert new_server.heard(peer, frame) is None
        assert new_client.heard(frame) is None
    # Both go on as if nothing had been.
    assert ends.up(frame := frames.ack(2, 1, 1)) == frame
    assert ends.down(frame) == frame


@given(order=st.permutations(range(6)))
def test_of_frames_that_overtake_each_other_only_those_pass_that_are_newer_than_all_before(order: list[int]) -> None:
    ends = Ends()
    ends.greet()
    plain = [frames.ack(1, number, 0) for number in range(6)]
    sealed = [ends.client.seal(frame) for frame in plain]
    passed = [number for number in order if ends.server.heard(PEER, sealed[number] or b"") is not None]
    assert passed == [number for place, number in enumerate(order) if number >= max(order[: place + 1])]
    assert ends.server.rejected["replayed"] == 6 - len(passed)


def test_a_frame_spliced_into_another_channel_is_rejected(ends: Ends) -> None:
    other = Ends()
    other.greet()
    sealed = other.client.seal(frames.ack(1, 1, 1))
    assert sealed is not None
    channel = ends.client._channel
    assert channel is not None
    renamed = sealed[:4] + channel.id + sealed[12:]
    assert ends.server.heard(PEER, renamed) is None
    assert ends.server.rejected == {"forged": 1}


def test_a_frame_turned_back_is_rejected(ends: Ends) -> None:
    sealed = ends.client.seal(frames.ack(1, 1, 1))
    assert sealed is not None
    ends.client.heard(sealed)
    assert ends.client.rejected == {"forged": 1}


def test_each_greeting_has_keys_of_its_own(ends: Ends) -> None:
    frame = frames.ack(1, 1, 1)
    before = ends.client.seal(frame)
    ends.greet()
    after = ends.client.seal(frame)
    assert before is not None
    assert after is not None
    assert before[4:12] != after[4:12]
    assert ends.server.heard(PEER, before) is None
    assert ends.server.heard(PEER, after) == frame


def test_a_frame_that_found_no_room_is_the_same_when_it_is_tried_again(ends: Ends) -> None:
    frame = frames.ack(1, 1, 1)
    assert ends.client.seal(frame) is ends.client.seal(frame)
    sealed = ends.server.seal(PEER, frame)
    assert sealed is not None
    ends.server.refused(PEER, frame, sealed)
    assert ends.server.seal(PEER, frame) is sealed
    ends.server.sent(PEER)
    assert ends.server.seal(PEER, frame) != sealed


# -- loss and harmless duplicates ------------------------------------------------------------------------------


def test_a_knock_that_came_twice_opens_one_channel() -> None:
    ends = Ends()
    said = hello()
    knock = ends.client.seal(said)
    assert knock is not None
    for _ in range(2):
        ends.server.heard(PEER, knock)
    assert len({frame for _, frame in ends.server.replies}) == 1
    assert ends.replies() == [None, None]
    assert ends.carry_up(ends.first()) == said
    assert ends.client.rejected == {"stale": 1}


def test_a_greeting_that_comes_late_does_not_spoil_the_one_after_it() -> None:
    ends = Ends()
    ends.up(hello())
    ends.replies()
    late = ends.first()
    ends.up(said := hello())
    ends.replies()
    assert ends.carry_up(late) is not None
    assert ends.carry_up(ends.first()) == said
    assert not ends.server.rejected


def test_a_lost_admission_is_made_up_for_by_the_next_hello() -> None:
    ends = Ends()
    ends.up(hello())
    ends.server.replies.clear()
    assert ends.client.seal(frames.ack(1, 0, 0)) is None
    ends.greet()


def test_a_server_that_began_anew_has_the_client_greet_again(ends: Ends) -> None:
    ends.server = ServerGuard(KEY, Counter())
    assert ends.up(frames.ping(1, 0)) is None
    assert ends.replies() == [frames.who()]
    assert ends.server.rejected == {"stranger": 1}
    ends.greet()


def test_a_forged_word_that_a_channel_is_unknown_is_not_heard(ends: Ends) -> None:
    channel = ends.client._channel
    assert channel is not None
    assert ends.client.heard(frames.head(Kind.STRANGER) + channel.id + bytes(16)) is None
    assert ends.client.rejected == {"forged": 1}


def test_knocks_without_end_take_no_memory_and_harm_nobody(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "PEERS", 10)
    for number in range(50):
        for peer in (PEER, f"peer {number}"):
            ends.server.heard(peer, ClientGuard(KEY, Counter()).seal(hello()) or b"")
    assert len(ends.server._offered) == 10
    assert all(len(offers) <= guard.OFFERED for offers in ends.server._offered.values())
    assert ends.up(frame := frames.ack(1, 1, 1)) == frame


def test_a_channel_that_had_to_make_room_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "CHANNELS", 1)
    first, second = Ends(), Ends()
    second.server = first.server
    first.greet("first")
    second.greet("second")
    assert first.server.seal("first", frames.who()) is None
    assert first.up(frames.ping(1, 0), "first") is None
    assert first.replies() == [frames.who()]
    first.greet("first")


# -- refusals --------------------------------------------------------------------------------------------------


def refusal(frame: bytes | None) -> Refuse:
    assert frame is not None
    told = frames.unpack(Kind.REFUSE, frame)
    assert isinstance(told, Refuse)
    return told


def test_another_key_is_refused_and_says_what_to_do() -> None:
    ends = Ends(of_server=Secret(b"another key"))
    ends.up(hello())
    (heard,) = ends.replies()
    assert refusal(heard).reason == "key"
    assert "give both ends the same key=" in refusal(heard).detail
    assert ends.server.rejected == {"forged": 1}


def test_a_client_without_a_key_is_refused_and_told_what_to_do() -> None:
    server = ServerGuard(KEY, Counter())
    assert server.heard(PEER, hello()) is None
    told = refusal(server.replies.popleft()[1])
    assert (told.reason, server.rejected) == ("unsigned", {"unsigned": 1})
    assert "key=" in told.detail


def test_a_server_without_a_key_refuses_a_client_that_has_one() -> None:
    codec = MessagePack()
    acceptor = Acceptor(lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=1000, patience=0.0)
    connector = Connector(codec, Outbox(codec, max_frame=1000), max_frame=1000)
    client = ClientGuard(KEY, Counter())
    connector.arrived(Up(SERVER), 0.0)
    knock = client.seal(connector.next() or b"")
    assert knock is not None
    acceptor.arrived(Frame(PEER, knock), 0.0)
    ((_, answer),) = acceptor.strangers
    connector.arrived(Frame(SERVER, client.heard(answer) or b""), 0.0)
    assert connector.state is State.REFUSED
    assert connector.refusal is not None
    assert connector.refusal.reason == "keyed"
    assert acceptor.rejected == {"keyed": 1}
    assert not acceptor.sessions


def test_a_forged_refusal_is_not_believed(ends: Ends) -> None:
    forged = frames.pack(Refuse("key", "go away", b""))
    assert ends.client.heard(forged) is None
    ends.up(hello())
    assert ends.client.heard(forged) is None
    assert ends.client.heard(frames.pack(Refuse("key", "go away", bytes(32)))) is None
    assert ends.client.rejected == {"unsigned": 3}
    assert ends.replies() == [None]
    assert ends.client.first is not None


def test_what_a_refusal_says_is_not_what_the_wire_says() -> None:
    client = ClientGuard(KEY, Counter())
    knock = client.seal(hello())
    assert knock is not None
    heard = client.heard(frames.pack(Refuse("expired", "run this command as root", frames.about(knock))))
    assert "root" not in refusal(heard).detail


def test_a_client_of_another_version_is_refused_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends()
    with monkeypatch.context() as patch:
        patch.setattr(frames, "VERSION", 7)
        ends.up(hello())
    (heard,) = ends.replies()
    assert refusal(heard).reason == "version"
    assert ends.server.rejected == {"version": 1}


def test_a_late_copy_of_an_old_knock_makes_no_late_frame_look_forged() -> None:
    """Answered anew, it would give the old channel's name to another one, whose tags fit nothing that is on its way."""
    ends = Ends()
    ends.greet()
    knock = next(frame for way, frame in ends.wire if way == "up")
    late = ends.client.seal(frames.ack(1, 1, 0))
    assert late is not None
    for _ in range(3):
        ends.greet()
        assert ends.server.heard(PEER, knock) is None
        assert not ends.server.replies
        assert ends.server.heard(PEER, late) is None
        assert all(frame is None for frame in ends.replies())
    assert ends.server.rejected == {"replayed": 3, "stranger": 3}
