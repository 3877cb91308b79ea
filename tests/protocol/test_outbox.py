"""The sending side: numbers, window, resending, and who knows what became of an event."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from remit._protocol.frames import REDELIVERED, read_events
from remit._protocol.outbox import BATCH_EVENTS, Outbox
from remit._protocol.session import Inbox
from remit.codec import MessagePack

CODEC = MessagePack()


def outbox(count: int, **options: int) -> Outbox:
    box = Outbox(CODEC, **{"max_frame": 1 << 20, **options})
    for number in range(count):
        box.pending.append(CODEC.encode("n", (number,), {}, {}))
    return box


def taken(box: Outbox) -> list[tuple[int, int]]:
    frames = []
    while frame := box.pop_frame():
        _, first, count, body = read_events(frame)
        assert len(CODEC.decode(memoryview(frame)[body:])) == count
        frames.append((first, count))
    return frames


def test_events_share_frames_and_have_numbers_without_gaps() -> None:
    frames = taken(outbox(3 * BATCH_EVENTS + 1))
    assert frames == [
        (1, BATCH_EVENTS),
        (1 + BATCH_EVENTS, BATCH_EVENTS),
        (1 + 2 * BATCH_EVENTS, BATCH_EVENTS),
        (1 + 3 * BATCH_EVENTS, 1),
    ]


def test_the_window_opens_with_what_is_done_not_with_what_is_received() -> None:
    box = outbox(100, window_events=10)
    assert taken(box) == [(1, 10)]
    assert box.confirm(10, 0)
    assert taken(box) == []
    assert box.confirm(10, 4)
    assert taken(box) == [(11, 4)]


def test_bytes_bound_the_window_too() -> None:
    box = outbox(1000, window_bytes=600)
    assert 0 < sum(count for _, count in taken(box)) < 1000


def test_only_what_was_not_received_is_sent_again() -> None:
    box = outbox(30, window_events=10)
    taken(box)
    box.confirm(10, 10)
    taken(box)
    box.confirm(10, 10)
    box.resend_unreceived()
    assert taken(box) == [(11, 10)]
    box.confirm(20, 10)
    box.resend_unreceived()
    assert taken(box) == []


def test_another_server_gets_all_that_is_not_done_marked() -> None:
    box = outbox(4, window_events=2)
    taken(box)
    box.confirm(2, 0)
    box.redeliver()
    frame = box.pop_frame()
    assert frame is not None
    assert read_events(frame)[1:3] == (1, 2)
    assert read_events(frame)[0] & REDELIVERED


def test_an_acknowledgement_of_numbers_never_given_is_ignored() -> None:
    box = outbox(2)
    taken(box)
    assert not box.confirm(7, 7)
    assert not box.confirm(1, 2)
    assert box.unconfirmed == 2


def test_what_is_over_the_other_sides_limit_is_put_aside() -> None:
    box = outbox(1, max_frame=64)
    box.pending.append(CODEC.encode("big", (bytes(100),), {}, {}))
    box.pending.append(CODEC.encode("n", (1,), {}, {}))
    assert sum(count for _, count in taken(box)) == 2
    assert len(box.oversized) == 1
    assert [fate for fate, _ in box.unfinished()] == ["unknown", "unknown", "never_sent"]


def test_each_event_has_one_fate() -> None:
    box = outbox(6, window_events=4)
    taken(box)
    box.confirm(2, 1)
    assert [fate for fate, _ in box.unfinished()] == ["received", "unknown", "unknown", "never_sent", "never_sent"]


@given(st.lists(st.tuples(st.integers(1, 40), st.integers(1, 10))))
def test_an_inbox_admits_each_number_once_whatever_comes(frames: list[tuple[int, int]]) -> None:
    inbox, admitted = Inbox(), []
    for first, count in frames:
        if not inbox.has_gap_before(first):
            admitted += inbox.new_events(first, list(range(first, first + count)))
            inbox.accept(first + count - 1)
    assert admitted == list(range(1, inbox.received + 1))
