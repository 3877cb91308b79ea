"""The signed channel: entries arrive as they were sent, or the message is refused."""

from __future__ import annotations

import pytest

from doorman._worker.signed_channel import CHUNK_BYTES, Entry, SignedReceiver, SignedSender
from doorman.identity import Credential

ENTRIES: list[Entry] = [(1, 0, b"x"), (2, 3, b"y")]
LARGE: list[Entry] = [(7, 1, b"before"), (8, 2, bytes(range(256)) * 3000), (9, 0, b"after")]


def sent(credential: Credential, *messages: list[Entry], purpose: bytes = b"there") -> list[tuple[int, bytes, bytes]]:
    events: list[tuple[int, bytes, bytes]] = []
    sender = SignedSender(credential, purpose, lambda *event: events.append(event))
    for entries in messages:
        sender.send(entries)
    return events


def test_entries_arrive_in_one_event():
    credential = Credential("w")
    [event] = sent(credential, ENTRIES)
    assert SignedReceiver(credential, b"there").receive(*event) == ENTRIES


def test_a_large_entry_arrives_in_chunks():
    credential = Credential("w")
    events = sent(credential, LARGE)
    receiver = SignedReceiver(credential, b"there")
    assert [entry for event in events for entry in receiver.receive(*event)] == LARGE
    assert all(len(data) < CHUNK_BYTES + 100 for _, data, _ in events)
    assert len(events) == 5


def test_nothing_is_sent_for_no_entries():
    assert sent(Credential("w"), []) == []


def test_a_message_of_another_sender_or_purpose_is_refused():
    ours, theirs = Credential("w"), Credential("w")
    [event] = sent(ours, ENTRIES)
    for receiver in (SignedReceiver(theirs, b"there"), SignedReceiver(ours, b"back")):
        with pytest.raises(ValueError, match="not signed"):
            receiver.receive(*event)


@pytest.mark.parametrize("joins", [False, True])
def test_a_replayed_message_is_refused(joins):
    credential = Credential("w")
    events = sent(credential, ENTRIES, ENTRIES)
    receiver = SignedReceiver(credential, b"there", joins=joins)
    for event in events:
        receiver.receive(*event)
    for event in events:
        with pytest.raises(ValueError, match="not its next message"):
            receiver.receive(*event)


def test_a_missing_message_is_noticed():
    credential = Credential("w")
    with pytest.raises(ValueError, match="not its next message"):
        SignedReceiver(credential, b"there").receive(*sent(credential, ENTRIES, ENTRIES)[1])


@pytest.mark.parametrize("joins", [False, True])
@pytest.mark.parametrize(
    "event",
    [
        (1, b"", b""),
        ("1", b"", b""),
        (1, None, b""),
        (1, b"", "text"),
        (1.0, b"", b""),
        (-1, b"", b""),
        (1 << 80, b"", b""),
    ],
)
def test_any_arguments_are_refused_in_the_same_way(event, joins):
    with pytest.raises(ValueError, match="not signed"):
        SignedReceiver(Credential("w"), b"there", joins=joins).receive(*event)


@pytest.mark.parametrize(("missing", "complete"), [(1, LARGE[1:]), (2, LARGE[2:]), (3, LARGE[2:]), (4, LARGE[2:])])
def test_a_receiver_that_joins_late_drops_an_incomplete_entry(missing, complete):
    credential = Credential("w")
    events = sent(credential, LARGE)
    receiver = SignedReceiver(credential, b"there", joins=True)
    assert [entry for event in events[missing:] for entry in receiver.receive(*event)] == complete


def test_a_gap_within_a_large_entry_drops_it():
    credential = Credential("w")
    events = sent(credential, LARGE)
    receiver = SignedReceiver(credential, b"there", joins=True)
    received = [entry for event in (*events[:2], *events[3:]) for entry in receiver.receive(*event)]
    assert received == [LARGE[0], LARGE[2]]
