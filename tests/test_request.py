"""Requests: asked over every transport, answered by a listener, failed in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import CancelledError

import pytest
from ticking import ticked
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Server
from remit.errors import (
    FrameTooLarge,
    LinkClosed,
    NoListener,
    PeerLost,
    RequestFailed,
    RequestTimeout,
    WouldDeadlock,
)


@pytest.fixture
def server(location) -> Iterator[Server]:
    with Server(location) as server:
        yield server


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.location) as client:
        yield client


def arrived(server: Server, events: int) -> None:
    """Wait until so many events have arrived, and let none be handled."""

    def here() -> bool:
        server.wait(0.01)
        server.tick(limit=0)
        return server.stats()["waiting"] >= events

    wait_until(here)


def add(a: int, b: int) -> int:
    return a + b


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
def test_a_listeners_value_is_the_answer(server, codec, threaded):
    server.add_listener("add", add)
    server.add_listener("say", lambda **words: words)
    with ticked(server), Client(server.location, codec=codec, threaded=threaded) as client:
        assert client.request("add", 2, 3, timeout=DEADLINE) == 5
        assert client.request("say", hello="world") == {"hello": "world"}
        assert [client.request("add", n, n) for n in range(50)] == [2 * n for n in range(50)]


def test_many_requests_are_under_way_at_once(server, client):
    server.add_listener("add", add)
    futures = [client.submit("add", n, 1) for n in range(2000)]
    tick_until(server, lambda: all(future.done() for future in futures))
    assert [future.result() for future in futures] == [n + 1 for n in range(2000)]


def test_an_exception_comes_back_with_its_traceback(server, client):
    def divide(a: int, b: int) -> float:
        return a / b

    server.add_listener("divide", divide)
    with ticked(server), pytest.raises(RequestFailed, match="ZeroDivisionError: division by zero") as failed:
        client.request("divide", 1, 0)
    assert failed.value.type_name == "builtins.ZeroDivisionError"
    assert "in divide" in failed.value.traceback
    assert server.stats()["listener_errors"] == 1


def test_the_first_listener_answers_and_the_others_hear(server, client):
    heard: list[int] = []
    server.add_listener("add", add)
    server.add_listener("*", lambda *args: heard.append(sum(args)))
    with ticked(server):
        assert client.request("add", 2, 3) == 5
    assert heard == [5]


def test_nobody_listens(server, client):
    with ticked(server), pytest.raises(NoListener, match="'sing'"):
        client.request("sing")


def test_an_answer_that_cannot_travel_is_told(server, client):
    server.add_listener("object", object)
    server.add_listener("large", lambda: b"x" * (64 << 20))
    with ticked(server):
        with pytest.raises(RequestFailed, match="CodecError"):
            client.request("object")
        with pytest.raises(RequestFailed, match="FrameTooLarge"):
            client.request("large")


def test_a_question_that_cannot_travel_is_refused(server, client):
    with pytest.raises(FrameTooLarge):
        client.submit("large", b"x" * (64 << 20))
    assert client.stats()["requests"] == 0


def test_a_request_has_a_deadline(server, client):
    ran: list[int] = []
    server.add_listener("slow", ran.append)
    client.emit("hello")
    tick_until(server, lambda: client.flush(0.01))
    future = client.submit("slow", 1, timeout=0.05)
    with pytest.raises(RequestTimeout, match="'slow'"):
        future.result(DEADLINE)
    other = client.submit("slow", 2)
    arrived(server, 2)  # and what was cancelled before it
    tick_until(server, other.done)
    assert ran == [2], "nobody waited for the first any more"


def test_without_a_server_a_request_ends_by_its_deadline(location):
    if location.port == 0:
        location = location.replace(port=9)
    with (
        Client(location, linger=0.1) as client,
        pytest.raises(RequestTimeout, match="is a server there"),
    ):
        client.request("add", timeout=0.05)


def test_a_cancelled_request_does_not_run(server, client):
    ran: list[int] = []
    server.add_listener("note", ran.append)
    futures = [client.submit("note", n) for n in range(3)]
    arrived(server, 3)
    assert futures[1].cancel()
    last = client.submit("note", 3)
    arrived(server, 4)  # and what was cancelled before it
    tick_until(server, last.done)
    with pytest.raises(CancelledError):
        futures[1].result()
    assert ran == [0, 2, 3]


def test_a_lost_server_is_told_at_once(location):
    server = Server(location)
    with Client(server.location, linger=0.1) as client:
        client.emit("hello")
        tick_until(server, lambda: client.flush(0.01))
        future = client.submit("never", timeout=10 * DEADLINE)
        wait_until(lambda: not client.stats()["queued"])
        before = time.monotonic()
        server.close()
        with pytest.raises(PeerLost, match="'never'"):
            future.result(DEADLINE)
        assert time.monotonic() - before < DEADLINE


def test_an_idempotent_request_is_asked_again(location):
    server = Server(location)
    where = server.location
    with Client(where) as client:
        client.emit("hello")
        tick_until(server, lambda: client.connected)
        future = client.submit("add", 2, 3, idempotent=True, timeout=3 * DEADLINE)
        wait_until(lambda: not client.stats()["queued"])
        server.close()
        with Server(where) as again:
            again.add_listener("add", add)
            tick_until(again, future.done)
            assert future.result() == 5
            tick_until(again, lambda: client.flush(0.01))


def test_who_ticks_the_server_cannot_ask_it(server, client):
    server.tick()
    with pytest.raises(WouldDeadlock, match="in another thread"):
        client.request("add", 1, 1)


def test_a_listener_may_ask_another_server(location, request):
    with Server(location) as one, Server("memory://another") as two:
        two.add_listener("add", add)
        with ticked(two), Client(two.location) as to_two:
            one.add_listener("relay", lambda a, b: to_two.request("add", a, b))
            with ticked(one), Client(one.location) as client:
                assert client.request("relay", 20, 22) == 42


def test_closing_fails_what_is_open(server):
    client = Client(server.location, linger=0.0)
    future = client.submit("never")
    client.close()
    with pytest.raises(LinkClosed, match="before 'never' was answered"):
        future.result(0)


def test_async_listeners_need_an_async_server(server, client):
    async def later() -> int:
        return 1

    server.add_listener("later", later)
    with ticked(server), pytest.raises(RequestFailed, match="AsyncServer"):
        client.request("later")


def test_a_request_that_is_no_request_is_counted(server, client):
    client.emit("remit.request", "nonsense")
    client.emit("remit.request", 1, 2)
    client.emit("remit.reply", 1, 2)
    client.emit("remit.nothing")
    server.add_listener("add", add)
    with ticked(server):
        assert client.request("add", 1, 1) == 2


def test_reserved_names_are_refused(server):
    with pytest.raises(ValueError, match="is reserved"):
        server.add_listener("remit.request", print)


def test_a_wait_in_a_futures_callback_is_refused_and_not_waited_for_ever(server, client):
    """The callback runs on the thread that would have to receive what it waits for."""
    server.add_listener("add", add)
    outcomes: list[object] = []

    def ask_more(_: object) -> None:
        client.emit("add", 0, 0)  # for flush to wait for
        for wait in (lambda: client.request("add", 1, 1, timeout=DEADLINE), lambda: client.flush(DEADLINE)):
            try:
                outcomes.append(wait())
            except WouldDeadlock as error:
                outcomes.append(error)
        outcomes.append(client.submit("add", 2, 2))

    client.submit("add", 1, 1).add_done_callback(ask_more)
    with ticked(server):  # Not before: a future that is done calls back in the thread that asks for it.
        wait_until(lambda: len(outcomes) == 3)
        assert [type(outcome) for outcome in outcomes[:2]] == [WouldDeadlock] * 2
        assert outcomes[2].result(DEADLINE) == 4
        assert client.request("add", 3, 3, timeout=DEADLINE) == 6
