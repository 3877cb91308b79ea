"""Guards on a bad wire: what is lost, late or doubled is made up for, and takes no memory."""

from __future__ import annotations

from collections import Counter

import pytest
from guards import KEY, PEER, Ends, hello

from remit._protocol import auth as guard
from remit._protocol import frames
from remit._protocol.auth import ClientAuth, ServerAuth, channel_id_of
from remit._protocol.frames import FrameKind


def test_a_knock_that_came_twice_opens_one_channel() -> None:
    ends = Ends()
    said = hello()
    knock = ends.client.wrap_frame(said)
    assert knock is not None
    for _ in range(2):
        ends.server.unwrap_frame(PEER, knock)
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
    assert ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 0, 0)) is None
    ends.greet()


def test_a_server_that_began_anew_has_the_client_greet_again(ends: Ends) -> None:
    ends.server = ServerAuth(KEY, Counter())
    assert ends.up(frames.pack_numbers(FrameKind.PING, 1, 0)) is None
    assert ends.replies() == [frames.head(FrameKind.IDENTIFY)]
    assert ends.server.rejected == {"unknown_channel": 1}
    ends.greet()


def test_a_forged_word_that_a_channel_is_unknown_is_not_heard(ends: Ends) -> None:
    identifier = channel_id_of(ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 1, 1)) or b"")
    assert ends.client.unwrap_frame(frames.head(FrameKind.UNKNOWN_CHANNEL) + identifier + bytes(16)) is None
    assert ends.client.rejected == {"forged": 1}


def test_knocks_without_end_take_no_memory_and_harm_nobody(ends: Ends, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_PENDING_PEERS", 10)
    for number in range(50):
        for peer in (PEER, f"peer {number}"):
            ends.server.unwrap_frame(peer, ClientAuth(KEY, Counter()).wrap_frame(hello()) or b"")
    assert len(ends.server.offers) == 10
    assert all(len(offers) <= guard.MAX_OFFERS_PER_PEER for offers in ends.server.offers.values())
    assert ends.up(frame := frames.pack_numbers(FrameKind.ACK, 1, 1, 1)) == frame


def test_a_channel_that_had_to_make_room_is_opened_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guard, "MAX_CHANNELS", 1)
    first, second = Ends(), Ends()
    second.server = first.server
    first.greet("first")
    second.greet("second")
    assert first.server.wrap_frame("first", frames.head(FrameKind.IDENTIFY)) is None
    assert first.up(frames.pack_numbers(FrameKind.PING, 1, 0), "first") is None
    assert first.replies() == [frames.head(FrameKind.IDENTIFY)]
    first.greet("first")


def test_a_late_copy_of_an_old_knock_makes_no_late_frame_look_forged() -> None:
    """Answered anew, it would give the old channel's name to another one, whose tags fit nothing that is on its way."""
    ends = Ends()
    ends.greet()
    knock = next(frame for way, frame in ends.wire if way == "up")
    late = ends.client.wrap_frame(frames.pack_numbers(FrameKind.ACK, 1, 1, 0))
    assert late is not None
    for _ in range(3):
        ends.greet()
        assert ends.server.unwrap_frame(PEER, knock) is None
        assert not ends.server.replies
        assert ends.server.unwrap_frame(PEER, late) is None
        assert all(frame is None for frame in ends.replies())
    assert ends.server.rejected == {"replayed": 3, "unknown_channel": 3}
