"""Guards: what was not signed with the shared key, for this connection and direction, and just now, is not let in."""

from __future__ import annotations

from collections import Counter

from guards import KEY, PEER, Ends, flipped, hello
from hypothesis import example, given
from hypothesis import strategies as st

from remit._protocol import frames
from remit._protocol.auth import OVERHEAD_BYTES, ClientAuth, ServerAuth, channel_id_of
from remit._protocol.frames import FrameKind


def test_frames_pass_both_ways_in_order(ends: Ends) -> None:
    for number in range(5):
        frame = frames.pack_numbers(FrameKind.ACK, 1, number, 0)
        assert ends.up(frame) == frame
        assert ends.down(frame) == frame
    assert not ends.client.rejected
    assert not ends.server.rejected


@given(st.binary(max_size=300))
@example(b"")
def test_a_frame_of_any_bytes_passes_and_grows_by_as_much(body: bytes) -> None:
    ends = Ends()
    ends.greet()
    frame = frames.head(FrameKind.EVENTS) + body
    assert ends.up(frame) == frame
    assert len(ends.wire[-1][1]) == len(frame) + OVERHEAD_BYTES


@given(bit=st.integers(0), body=st.binary(max_size=100))
def test_a_flipped_bit_is_rejected_in_either_direction(bit: int, body: bytes) -> None:
    ends = Ends()
    ends.greet()
    frame = frames.head(FrameKind.EVENTS) + body
    sealed = ends.client.wrap_frame(frame)
    back = ends.server.wrap_frame(PEER, frame)
    assert sealed is not None
    assert back is not None
    assert ends.server.unwrap_frame(PEER, flipped(sealed, bit)) is None
    assert ends.client.unwrap_frame(flipped(back, bit)) is None
    assert ends.client.rejected.total() == ends.server.rejected.total() == 1
    # And it does not harm the channel: what was not altered still passes.
    assert ends.server.unwrap_frame(PEER, sealed) == frame
    assert ends.client.unwrap_frame(back) == frame


@given(bit=st.integers(0), step=st.integers(0, 2))
def test_a_flipped_bit_of_a_greeting_opens_nothing(bit: int, step: int) -> None:
    ends = Ends()
    said = hello()
    knock = ends.client.wrap_frame(said)
    assert knock is not None
    assert ends.server.unwrap_frame(PEER, flipped(knock, bit) if step == 0 else knock) is None
    if step == 0:
        assert all(frame is None for frame in ends.replies())
        assert ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 0, 0)) is None
        return
    _, admit = ends.server.replies.popleft()
    assert ends.client.unwrap_frame(flipped(admit, bit) if step == 1 else admit) is None
    if step == 1:
        assert ends.client.pending_hello is None
        assert ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 0, 0)) is None
        return
    assert ends.server.unwrap_frame(PEER, flipped(ends.first(), bit)) is None
    assert ends.server.wrap_frame(PEER, frames.head(FrameKind.IDENTIFY)) is None


@given(cut=st.integers(1, 200))
def test_a_truncated_frame_is_rejected(cut: int) -> None:
    ends = Ends()
    ends.greet()
    sealed = ends.client.wrap_frame(frames.head(FrameKind.EVENTS) + bytes(100))
    assert sealed is not None
    assert ends.server.unwrap_frame(PEER, sealed[:-cut]) is None
    assert ends.server.rejected.total() == 1


@given(st.binary(max_size=200))
def test_no_bytes_of_strangers_pass_or_raise(garbage: bytes) -> None:
    ends = Ends()
    ends.greet()
    for frame in (garbage, *(frames.head(kind) + garbage for kind in FrameKind)):
        assert ends.server.unwrap_frame(PEER, frame) is None
        assert ends.server.unwrap_frame("another", frame) is None
        assert ends.client.unwrap_frame(frame) is None


@given(which=st.lists(st.integers(0, 100), min_size=1, max_size=30), peer=st.sampled_from([PEER, "another"]))
def test_whatever_passed_before_never_passes_again(which: list[int], peer: str) -> None:
    """Nor on another connection, in the other direction, after another greeting, or at a server that began anew."""
    ends = Ends()
    ends.greet()
    for number in range(3):
        ends.up(frames.pack_numbers(FrameKind.ACK, 1, number, 0))
        ends.down(frames.pack_numbers(FrameKind.ACK, 1, number, 0))
    ends.greet()
    ends.up(frames.pack_numbers(FrameKind.ACK, 2, 0, 0))
    recorded = [frame for _, frame in ends.wire]
    new_server = ServerAuth(KEY, Counter())
    new_client = ClientAuth(KEY, Counter())
    new_client.wrap_frame(hello())
    for number in which:
        frame = recorded[number % len(recorded)]
        assert ends.server.unwrap_frame(peer, frame) is None
        assert ends.client.unwrap_frame(frame) is None
        assert new_server.unwrap_frame(peer, frame) is None
        assert new_client.unwrap_frame(frame) is None
    # Both go on as if nothing had been.
    assert ends.up(frame := frames.pack_numbers(FrameKind.ACK, 2, 1, 1)) == frame
    assert ends.down(frame) == frame


@given(order=st.permutations(range(6)))
def test_of_frames_that_overtake_each_other_only_those_pass_that_are_newer_than_all_before(order: list[int]) -> None:
    ends = Ends()
    ends.greet()
    plain = [frames.pack_numbers(FrameKind.ACK, 1, number, 0) for number in range(6)]
    sealed = [ends.client.wrap_frame(frame) for frame in plain]
    passed = [number for number in order if ends.server.unwrap_frame(PEER, sealed[number] or b"") is not None]
    assert passed == [number for place, number in enumerate(order) if number >= max(order[: place + 1])]
    assert ends.server.rejected["replayed"] == 6 - len(passed)


def test_a_frame_spliced_into_another_channel_is_rejected(ends: Ends) -> None:
    other = Ends()
    other.greet()
    sealed = other.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 1, 1))
    assert sealed is not None
    identifier = channel_id_of(ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 1, 1)) or b"")
    renamed = sealed[:4] + identifier + sealed[12:]
    assert ends.server.unwrap_frame(PEER, renamed) is None
    assert ends.server.rejected == {"forged": 1}


def test_a_frame_turned_back_is_rejected(ends: Ends) -> None:
    sealed = ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 1, 1))
    assert sealed is not None
    ends.client.unwrap_frame(sealed)
    assert ends.client.rejected == {"forged": 1}


def test_each_greeting_has_keys_of_its_own(ends: Ends) -> None:
    frame = frames.pack_numbers(FrameKind.ACK, 1, 1, 1)
    before = ends.client.wrap_frame(frame)
    ends.greet()
    after = ends.client.wrap_frame(frame)
    assert before is not None
    assert after is not None
    assert before[4:12] != after[4:12]
    assert ends.server.unwrap_frame(PEER, before) is None
    assert ends.server.unwrap_frame(PEER, after) == frame


def test_a_frame_that_found_no_room_is_the_same_when_it_is_tried_again(ends: Ends) -> None:
    frame = frames.pack_numbers(FrameKind.ACK, 1, 1, 1)
    assert ends.client.wrap_frame(frame) is ends.client.wrap_frame(frame)
    sealed = ends.server.wrap_frame(PEER, frame)
    assert sealed is not None
    assert ends.server.wrap_frame(PEER, frame) is sealed
    ends.server.mark_sent(PEER)
    assert ends.server.wrap_frame(PEER, frame) != sealed
