"""Emitting over every transport: events arrive once, in order, with what they were given."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from ticking import closing, ticked
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Event, Location, Server
from remit.codec import JSON, MessagePack
from remit.listeners import NAMES_LOGGED


@dataclass
class Order:
    number: int
    items: list[str]


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


def test_an_event_without_a_listener_is_logged_once_for_each_name(
    location: Location, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(location) as server, Client(server.location) as client:
        for number in range(300):
            client.emit("ordr")
            client.emit(f"name {number}")
        tick_until(server, lambda: server.stats()["unheard"] == 600)
    records = [record.getMessage() for record in caplog.records if "no listener for event" in record.getMessage()]
    assert records[0] == (
        "no listener for event 'ordr': check the name at the sender, or add a listener by server.add_listener()"
    )
    assert sum("'ordr'" in record for record in records) == 1
    assert len(records) == NAMES_LOGGED


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


def test_first_events_of_several_threads_share_one_connection(location: Location) -> None:
    heard: list[int] = []
    together = threading.Barrier(8)

    def emit(client: Client, number: int) -> None:
        together.wait(DEADLINE)
        client.emit("first", number)

    with Server(location) as server:
        server.add_listener("first", heard.append)
        for _ in range(5):
            heard.clear()
            client = Client(server.location)
            with ticked(server), ThreadPoolExecutor(8) as pool:
                list(pool.map(emit, [client] * 8, range(8)))
                assert client.flush(DEADLINE)
                client.close()
            assert sorted(heard) == list(range(8))


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


@pytest.mark.parametrize("threaded", [True, False])
def test_a_clients_listener_that_exits_costs_no_other_event(location: Location, threaded: bool) -> None:
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        if number == 1:
            raise SystemExit

    with Server(location) as server, ticked(server), Client(server.location, threaded=threaded) as client:
        server.add_listener("begin", lambda event: [event.sender.emit("n", n) for n in range(4)], pass_event=True)
        client.add_listener("n", hear)
        client.emit("begin")
        if not threaded:
            with pytest.raises(SystemExit):
                wait_until(lambda: len(heard) == 4, tick=client)
            assert heard == [0, 1]
        wait_until(lambda: len(heard) == 4, timeout=10, tick=None if threaded else client)
    assert heard == [0, 1, 2, 3]


@pytest.mark.parametrize("base", [MessagePack, JSON])
def test_a_codec_derived_from_one_of_ours_encodes_each_event_itself(location: Location, base: Any) -> None:
    class Shouting(base):  # type: ignore[misc]
        def encode(self, name: str, args: Any, *others: Any) -> Any:
            shouted = [arg.upper() if isinstance(arg, str) else arg for arg in args]
            return super().encode(name, shouted, *others)

    heard: list[object] = []
    with Server(location) as server, Client(server.location, codec=Shouting()) as client:
        server.add_listener("said", lambda *args: heard.extend(args))
        client.emit("said", "a", 1)
        client.emit("said", "b", ["c"])
        client.emit(Event("said", ("d",)))
        tick_until(server, lambda: len(heard) >= 5)
    assert heard == ["A", 1, "B", ["c"], "D"]
