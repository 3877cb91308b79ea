"""Ticking over every transport: who dispatches and sends, when, and how much at a time."""

from __future__ import annotations

import pickle
import threading
import time
from collections import deque
from typing import Any

import internals
import pytest
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Location, Server
from remit._io import server_io
from remit._protocol.outbox import Outbox
from remit._protocol.session import Received, Session
from remit.codec import CODECS
from remit.errors import LinkClosed, ReentrantTick
from remit.transport import Waker


def test_tick_says_how_many_and_obeys_its_limit(location: Location) -> None:
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("n", heard.append)
        for number in range(10):
            client.emit("n", number)
        wait_until(lambda: (server.tick(limit=0), server.stats()["waiting"] == 10)[1])
        assert heard == []
        assert server.tick(limit=3) == 3
        assert heard == [0, 1, 2]
        assert server.tick() == 7
        assert client.flush()


def test_an_interrupted_tick_dispatches_no_event_twice(location: Location) -> None:
    heard: list[int] = []

    def listen(number: int) -> None:
        heard.append(number)
        server.emit("local")  # A dispatch within the dispatch must not count.
        if number == 5:
            raise KeyboardInterrupt

    with Server(location) as server, Client(server.location) as client:
        server.add_listener("n", listen)
        for number in range(10):
            client.emit("n", number)
        wait_until(lambda: (server.tick(limit=0), server.stats()["waiting"] == 10)[1])
        with pytest.raises(KeyboardInterrupt):
            server.tick()
        tick_until(server, lambda: len(heard) >= 10)
        assert client.flush()
    assert heard == list(range(10))


def test_an_unthreaded_client_sends_at_once(location: Location) -> None:
    heard: list[int] = []
    with Server(location) as server, Client(server.location, threaded=False) as client:
        server.add_listener("n", heard.append)
        client.emit("n", 1)
        tick_until(server, lambda: (client.tick(), heard)[1])
        for number in range(2, 1000):
            client.emit("n", number)
        tick_until(server, lambda: (client.tick(), len(heard) == 999)[1])
        assert client.flush()
    assert heard == list(range(1, 1000))


def test_calling_tick_from_a_listener_is_refused(location: Location) -> None:
    errors: list[Exception] = []
    with Server(location, on_error=lambda event, error: errors.append(error)) as server:
        server.add_listener("n", lambda: server.tick())
        with Client(server.location) as client:
            client.emit("n")
            tick_until(server, lambda: errors)
            assert client.flush()
    assert isinstance(errors[0], ReentrantTick)


def test_run_and_stop(location: Location) -> None:
    with Server(location) as server:
        server.add_listener("stop", server.stop)
        client = Client(server.location)
        client.emit("stop")
        server.run(timeout=20)
        assert server.stats()["dispatched"] == 1
        client.close()


def test_who_stops_before_the_run_has_begun_is_heard(location: Location) -> None:
    with Server(location) as server:
        server.stop()
        server.run()
        server.add_listener("stop", server.stop)
        with Client(server.location) as client:
            client.emit("stop")
            server.run(timeout=20)
        assert server.stats()["dispatched"] == 1, "it was heard once, and the next run began anew"


def test_what_is_emitted_between_ticks_leaves_although_nobody_ticks_or_waits_any_more(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server_io, "KEEPALIVE_INTERVAL_S", 3600.0)
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        senders = []
        server.add_listener("hello", lambda event: senders.append(event.sender), pass_event=True)
        client.add_listener("n", heard.append)
        client.emit("hello")
        tick_until(server, lambda: client.flush(0.0))
        for number in range(100):
            server.emit_to(senders[0], "n", number)
        wait_until(lambda: heard == list(range(100)))


def test_a_pickled_server_opens_when_it_is_run(location: Location) -> None:
    with Server(location) as server:
        copied = pickle.dumps(server)
    server = pickle.loads(copied)
    server.stop()
    server.run()
    server.add_listener("stop", server.stop)
    thread = threading.Thread(target=server.run, args=(DEADLINE,))
    thread.start()
    wait_until(lambda: "open" in repr(server))
    with Client(server.location) as client:
        client.emit("stop")
    thread.join(DEADLINE)
    assert server.stats()["dispatched"] == 1
    server.close()


# Finalizers of the same garbage may report its sockets.
@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")
def test_the_location_of_a_dropped_server_is_free(location: Location) -> None:
    url = Server(location).location
    Server(url).close()


def test_a_pickled_server_that_is_closed_before_its_first_use_says_so(location: Location) -> None:
    with Server(location) as server:
        copied = pickle.dumps(server)
    server = pickle.loads(copied)
    server.close()
    assert server.location == location
    with pytest.raises(LinkClosed, match="is closed"):
        server.tick()


def test_a_new_waker_ends_a_wait_although_its_descriptor_is_a_former_ones(location: Location) -> None:
    with Server(location) as server:
        for _ in range(3):
            waker = Waker()
            waker.wake()
            server.tick()
            began = time.monotonic()
            server.wait(DEADLINE, waker)
            assert time.monotonic() - began < DEADLINE / 2
            waker.close()


class Arrived(Received):
    """Events that wait; while somebody looks at them another thread pumps, and more arrive."""

    ready: deque[Received]
    more: Received

    def __getattribute__(self, name: str) -> Any:
        if name in ("session", "events"):
            Arrived.ready.append(Arrived.more)
        return super().__getattribute__(name)


def test_what_another_thread_pumps_meanwhile_disturbs_nobody(location: Location) -> None:
    with Server(location) as server:
        io = internals.server_io(server)
        ended = Session(b"ended", CODECS["msgpack"], Outbox(CODECS["msgpack"], max_frame=1000))
        Arrived.ready, Arrived.more = io.machine.ready, Received(ended, [])
        io.machine.ready.append(Arrived(ended, []))
        io.machine.enqueued += 2  # This frame, and the one that another thread adds.
        io.machine.closed.append((ended, io.machine.enqueued))
        assert server.stats()["waiting"] == 0
        io.report_sessions()
        assert [session for session, _ in io.machine.closed] == [ended]
        io.machine.ready.clear()
        io.report_sessions()
        assert not io.machine.closed
