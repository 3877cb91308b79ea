"""A server that ends and comes again: nothing confirmed is repeated, nothing unconfirmed is lost."""

from __future__ import annotations

from waiting import tick_until, wait_until

from remit import Client, Location, Server


def test_events_survive_a_new_server(crossing_location: Location) -> None:
    heard: list[int] = []
    first = Server(crossing_location)
    location = first.location
    client = Client(location)
    first.add_listener("n", heard.append)
    for number in range(100):
        client.emit("n", number)
    tick_until(first, lambda: len(heard) == 100)
    assert client.flush()
    first.close()
    for number in range(100, 200):
        client.emit("n", number)
    with Server(location) as second:
        second.add_listener("n", heard.append)
        tick_until(second, lambda: len(heard) >= 200)
        assert client.flush()
        for number in range(200, 300):
            client.emit("n", number)
        tick_until(second, lambda: len(heard) >= 300)
        assert client.flush()
        client.close()
    assert heard == list(range(300))


def test_what_was_dispatched_but_not_confirmed_is_marked(crossing_location: Location) -> None:
    marks: list[tuple[int, bool]] = []
    first = Server(crossing_location)
    location = first.location
    client = Client(location)
    client.emit("n", 1)
    wait_until(lambda: (first.tick(limit=0), first.stats()["waiting"] == 1)[1])
    first.close()
    with Server(location) as second:
        second.add_listener("n", lambda event: marks.append((event.args[0], event.redelivered)), pass_event=True)
        tick_until(second, lambda: marks)
        assert client.flush()
        client.emit("n", 2)
        tick_until(second, lambda: len(marks) == 2)
        client.close()
    assert marks == [(1, True), (2, False)]


def test_a_server_that_nobody_ticks_is_slow_and_not_dead(crossing_location: Location) -> None:
    heard: list[int] = []
    with Server(crossing_location) as server:
        client = Client(server.location, heartbeat=0.2)
        server.add_listener("n", heard.append)
        for number in range(100):
            client.emit("n", number)
        wait_until(lambda: server.stats()["waiting"] == 100)
        tick_until(server, lambda: len(heard) == 100)
        assert client.flush()
        assert client.stats()["connections"] == 1
        client.close()
    assert heard == list(range(100))
