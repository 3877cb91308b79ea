"""Emitting from one end and listening at the other, over every transport."""

from __future__ import annotations

import threading
from dataclasses import dataclass

import pytest
from waiting import tick_until, wait_until

from remit import Client, Event, Location, Server
from remit.ends import keeping
from remit.errors import (
    CodecError,
    EmitTimeout,
    FrameTooLarge,
    LinkClosed,
    QueueFull,
    ReentrantTick,
    Undelivered,
    WouldDeadlock,
)


@dataclass
class Order:
    number: int
    items: list[str]


def closing(client: Client) -> threading.Thread:
    """Close a client in another thread, since this one has to tick its server."""
    thread = threading.Thread(target=client.close)
    thread.start()
    return thread


def test_emit(location: Location) -> None:
    heard = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("greet", lambda *args, **kwargs: heard.append((args, kwargs)))
        client.emit("greet", "world", 1, 2.5, None, True, b"\x00\xff", ["a"], {"k": "ü"}, mood="fine")
        tick_until(server, lambda: heard)
    assert heard == [(("world", 1, 2.5, None, True, b"\x00\xff", ["a"], {"k": "ü"}), {"mood": "fine"})]


def test_many_events_arrive_once_and_in_order(location: Location) -> None:
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("n", heard.append)
        for number in range(5000):
            client.emit("n", number)
        tick_until(server, lambda: len(heard) >= 5000)
        assert server.tick() == 0
        assert client.flush()
    assert heard == list(range(5000))


def test_a_client_may_come_before_its_server(crossing_location: Location) -> None:
    if crossing_location.port == 0:
        with Server(crossing_location) as probe:
            crossing_location = probe.location
    heard: list[int] = []
    with Client(crossing_location) as client:
        client.emit("early", 1)
        with Server(crossing_location) as server:
            server.add_listener("early", heard.append)
            tick_until(server, lambda: heard)
            assert client.flush()
    assert heard == [1]


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


def test_patterns_several_listeners_once_and_remove(location: Location) -> None:
    heard: list[str] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("job.*", lambda: heard.append("pattern"))
        server.add_listener("job.done", lambda: heard.append("exact"))
        server.once("job.done", lambda: heard.append("once"))

        @server.on("job.done")
        def last() -> None:
            heard.append("last")

        client.emit("job.done")
        client.emit("jobs")
        client.emit("job.done")
        tick_until(server, lambda: heard.count("last") == 2)
        assert server.remove_listener("job.done", last)
        assert not server.remove_listener("job.done", last)
        client.emit("job.done")
        tick_until(server, lambda: heard.count("exact") == 3)
        assert client.flush()
    assert heard == ["pattern", "exact", "once", "last", "pattern", "exact", "last", "pattern", "exact"]


def test_a_listener_that_raises_disturbs_nobody(location: Location) -> None:
    heard: list[int] = []
    errors: list[tuple[Event, Exception]] = []

    def bad(number: int) -> None:
        raise ValueError(number)

    with Server(location, on_error=lambda event, error: errors.append((event, error))) as server:
        server.add_listener("n", bad)
        server.add_listener("n", heard.append)
        with Client(server.location) as client:
            client.emit("n", 1)
            client.emit("n", 2)
            tick_until(server, lambda: len(heard) == 2)
            assert client.flush()
        assert server.stats()["listener_errors"] == 2
    assert [(event.name, event.args, str(error)) for event, error in errors] == [("n", (1,), "1"), ("n", (2,), "2")]


def test_arguments_become_what_the_annotations_say(location: Location) -> None:
    heard: list[Order] = []

    def ordered(order: Order) -> None:
        heard.append(order)

    with Server(location) as server, Client(server.location) as client:
        server.add_listener("order", ordered)
        client.emit("order", Order(7, ["tea"]))
        client.emit("order", {"number": "seven"})
        tick_until(server, lambda: server.stats()["listener_errors"] == 1)
        assert client.flush()
    assert heard == [Order(7, ["tea"])]


def test_json_travels_as_well(location: Location) -> None:
    heard: list[object] = []
    with Server(location) as server, Client(server.location, codec="json") as client:
        server.add_listener("j", lambda *args, **kwargs: heard.append((args, kwargs)))
        client.emit("j", 1, "two", [3], {"four": 4}, five=5)
        tick_until(server, lambda: heard)
        assert client.flush()
    assert heard == [((1, "two", [3], {"four": 4}), {"five": 5})]


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "ticked"])
def test_the_server_answers_one_client(location: Location, threaded: bool) -> None:
    heard: list[int] = []
    events: list[Event] = []
    with Server(location) as server, Client(server.location, threaded=threaded) as client:
        server.add_listener("ask", events.append, pass_event=True)
        client.add_listener("answer", heard.append)
        client.emit("ask", 20)
        tick_until(server, lambda: threaded or client.tick() or events)
        tick_until(server, lambda: events)
        sender = events[0].sender
        assert sender is not None
        assert sender.connected
        for number in range(100):
            sender.emit("answer", number)
        tick_until(server, lambda: (threaded or client.tick(), len(heard) == 100)[1])
        assert client.flush()
    assert heard == list(range(100))


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


def test_a_listener_may_emit_and_change_listeners(location: Location) -> None:
    heard: list[str] = []
    with Server(location) as server, Client(server.location) as client:

        def first() -> None:
            server.remove_listener("a", first)
            server.add_listener("b", lambda: heard.append("b"))
            client.emit("b")
            server.emit("b")

        server.add_listener("a", first)
        client.emit("a")
        client.emit("a")
        tick_until(server, lambda: len(heard) == 2)
        assert client.flush()
    assert heard == ["b", "b"]


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


def test_large_events_arrive(location: Location) -> None:
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("big", lambda data: heard.append(len(data)))
        for _ in range(20):
            client.emit("big", bytes(500_000))
        tick_until(server, lambda: len(heard) == 20)
        assert client.flush()
    assert heard == [500_000] * 20


def test_at_most_once_needs_no_confirmation(location: Location) -> None:
    heard: list[int] = []
    with Server(location) as server, Client(server.location, delivery="at_most_once") as client:
        server.add_listener("n", heard.append)
        for number in range(100):
            client.emit("n", number)
        tick_until(server, lambda: len(heard) == 100)
        assert client.stats()["unconfirmed"] == 0
    assert heard == list(range(100))


def test_several_clients(location: Location) -> None:
    heard: dict[str, list[int]] = {}
    with Server(location) as server:
        server.add_listener("n", lambda who, number: heard.setdefault(who, []).append(number))
        clients = [Client(server.location) for _ in range(10)]
        for number in range(100):
            for index, client in enumerate(clients):
                client.emit("n", str(index), number)
        threads = [closing(client) for client in clients]
        tick_until(server, lambda: not any(thread.is_alive() for thread in threads))
        wait_until(lambda: (server.tick(), server.stats()["sessions"] == 0)[1])
    assert heard == {str(index): list(range(100)) for index in range(10)}


def test_run_and_stop(location: Location) -> None:
    with Server(location) as server:
        server.add_listener("stop", server.stop)
        client = Client(server.location)
        client.emit("stop")
        server.run(timeout=20)
        assert server.stats()["dispatched"] == 1
        client.close()


def test_what_is_emitted_between_ticks_leaves_although_nobody_ticks_or_waits_any_more(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(keeping, "KEEP", 3600.0)
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
