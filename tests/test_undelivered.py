"""What is not delivered, or not taken, is told over every transport: at once, at the end, never not at all."""

from __future__ import annotations

import pickle
import threading

import pytest
from internals import client_io
from ticking import closing
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Event, Location, Server
from remit.errors import (
    CodecError,
    DeadLetter,
    EmitTimeout,
    FrameTooLarge,
    LinkClosed,
    ProtocolError,
    QueueFull,
    RemitError,
    SessionRefused,
    Undelivered,
    WouldDeadlock,
)


def test_leaving_without_a_server_raises_what_was_lost(location: Location) -> None:
    if location.port == 0:
        with Server(location) as server:
            location = server.location
    client = Client(location, linger=0.1)
    client.emit("lost", 1)
    client.emit("lost", 2)
    with pytest.raises(Undelivered) as caught:
        client.close()
    assert [event.args for event in caught.value.events] == [(1,), (2,)]
    assert [event.args for event in caught.value.never_sent] == [(1,), (2,)]
    client.close()
    with pytest.raises(LinkClosed):
        client.emit("late")


@pytest.mark.parametrize(
    "error",
    [
        Undelivered([Event("lost", (1,))], why="no server"),
        DeadLetter("builtins.ValueError", "x", "trace"),
        SessionRefused("key", "another key"),
        ProtocolError("length", "3"),
        EmitTimeout("full"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_pickling(error: RemitError) -> None:
    for protocol in range(pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(error, protocol))
        assert (type(again), str(again), vars(again)) == (type(error), str(error), vars(error))


def test_an_exception_on_its_way_is_not_masked(location: Location) -> None:
    if location.port == 0:
        with Server(location) as server:
            location = server.location

    def leave() -> None:
        with Client(location, linger=0.05) as client:
            client.emit("lost")
            raise KeyError("mine")

    with pytest.raises(KeyError) as caught:
        leave()
    assert "1 event undelivered" in caught.value.__notes__[0]


def test_waiting_in_the_thread_that_ticks_is_refused(location: Location) -> None:
    with Server(location) as server:
        server.tick()
        client = Client(server.location)
        client.emit("n")
        with pytest.raises(WouldDeadlock):
            client.flush()
        tick_until(server, lambda: server.stats()["dispatched"])
        client.close()


@pytest.mark.parametrize("policy", ["raise", "drop_oldest", "drop_newest", "block"])
def test_when_full(location: Location, policy: str) -> None:
    heard: list[int] = []
    with Server(location) as server:
        client = Client(server.location, when_full=policy, queue=10, window=5, emit_timeout=0.1, linger=5)
        server.add_listener("n", heard.append)
        refused = 0
        for number in range(100):
            try:
                client.emit("n", number)
            except (QueueFull, EmitTimeout):
                refused += 1
                if refused == 3:
                    break
        stats = client.stats()
        assert stats["queued"] <= 10
        assert stats["dropped"] > 0
        thread = closing(client)
        tick_until(server, lambda: not thread.is_alive())
    assert heard == sorted(set(heard))
    assert 10 <= len(heard) <= 20 if policy != "drop_oldest" else heard[-1] == 99
    if policy in ("raise", "block"):
        assert refused == 3
    else:
        assert stats["dropped"] == 100 - len(heard)


def test_what_cannot_be_encoded_is_refused_at_once(location: Location) -> None:
    with Server(location) as server, Client(server.location) as client:
        with pytest.raises(CodecError, match="'bad'"):
            client.emit("bad", object())
        with pytest.raises(CodecError):
            client.emit("bad", 1 << 80)
        assert client.stats()["queued"] == 0
        assert server.tick() == 0


def test_what_is_too_large_is_refused_at_once(location: Location) -> None:
    location = location.replace(options={**dict(location.options), "max_frame": "65536"})
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("fits", lambda data: heard.append(len(data)))
        with pytest.raises(FrameTooLarge, match="'big'"):
            client.emit("big", bytes(70_000))
        client.emit("fits", bytes(60_000))
        tick_until(server, lambda: heard)
        assert client.flush()
    assert heard == [60_000]


def test_what_turns_out_to_be_too_large_for_the_server_is_never_said_to_be_delivered(location: Location) -> None:
    heard: list[int] = []
    options = dict(location.options)
    with Server(location.replace(options={**options, "max_frame": "65536"})) as server:
        server.add_listener("fits", lambda: heard.append(1))
        wide = server.location.replace(options={**options, "max_frame": "1048576"})
        client = Client(wide, linger=0.0)
        client.emit("big", bytes(70_000))
        client.emit("fits")
        tick_until(server, lambda: heard)
        assert not client.flush()
        with pytest.raises(Undelivered) as lost:
            client.close()
        assert [event.name for event in lost.value.never_sent] == ["big"]


def test_what_was_dropped_stays_counted_when_a_thread_takes_over(location: Location) -> None:
    with Server(location) as server:
        gone = server.location
    client = Client(gone, threaded=False, when_full="drop_newest", queue=1, linger=0.0)
    for number in range(10):
        client.emit("n", number)
    dropped = client.stats()["dropped"]
    assert dropped > 0
    client.start()
    assert client.stats()["dropped"] == dropped
    with pytest.raises(Undelivered):
        client.close()


def test_an_emit_that_waits_for_room_ends_when_its_client_is_closed(location: Location) -> None:
    with Server(location) as server:
        location = server.location
    client = Client(location, queue=1, linger=0.0, emit_timeout=DEADLINE)
    client.emit("first")
    errors: list[Exception] = []

    def emit() -> None:
        try:
            client.emit("second")
        except LinkClosed as error:
            errors.append(error)

    thread = threading.Thread(target=emit)
    thread.start()
    queue = client_io(client).send_queue
    wait_until(lambda: queue.waiting)
    with pytest.raises(Undelivered):
        client.close()
    thread.join(10)
    assert "closed while it waited" in str(errors)
