"""Headers: each operation takes an `Event` instead of a name, and its headers reach the listener."""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from queue import SimpleQueue
from typing import Any

import pytest
from ticking import ticked
from waiting import DEADLINE

from remit import AsyncClient, Broker, Client, Event, Server, Worker

HEADERS = {"trace": "7f", "sampled": True, "baggage": {"user": [1, 2]}}
TAKEN = {"timeout": "a", "idempotent": "b", "on_progress": "c", "keep": "d", "name": "e", "headers": "f", "queue": "g"}
"""Keyword arguments of a listener that are options of an operation."""
SENT = Event("call", (1, "two"), TAKEN, HEADERS)


class Ends:
    """A server and a client, and the events that their listeners have received."""

    def __init__(self, server: Server, client: Client, stack: contextlib.ExitStack) -> None:
        self.stack = stack
        self.server = server
        self.client = client
        self.received: SimpleQueue[Event] = SimpleQueue()
        server.add_listener("call", self.receive, pass_event=True)

    def receive(self, event: Event) -> str:
        self.received.put(event)
        return "done"

    def run(self, call: Callable[[AsyncClient], Any]) -> Any:
        async def main() -> Any:
            async with AsyncClient(self.server.location) as client:
                return await call(client)

        return asyncio.run(main())

    def reach_client(self, emit: Callable[[Event], None]) -> None:
        """Have the server emit the event to the client."""
        self.client.add_listener("call", self.receive, pass_event=True)
        self.server.add_listener("emit", lambda event: emit(event), pass_event=True)
        self.client.emit("emit")

    def subscribe(self, *, last: bool = False, codec: str = "msgpack") -> None:
        client = self.stack.enter_context(Client(self.server.location, codec=codec))
        client.subscribe("call", self.receive, pass_event=True, last=last)


async def submit(client: AsyncClient) -> Any:
    return await (await client.submit(SENT, timeout=DEADLINE))


def publish(ends: Ends) -> None:
    ends.subscribe()
    ends.server.publish(SENT)


def keep(ends: Ends) -> None:
    ends.server.publish(SENT, keep=True)
    ends.subscribe(last=True, codec="json")


OPERATIONS: dict[str, Callable[[Ends], object]] = {
    "emit": lambda ends: ends.client.emit(SENT),
    "request": lambda ends: ends.client.request(SENT, timeout=DEADLINE),
    "submit": lambda ends: ends.client.submit(SENT, idempotent=True),
    "publish": publish,
    "publish, last value": keep,
    "server.emit": lambda ends: ends.server.emit(SENT),
    "sender.emit": lambda ends: ends.reach_client(lambda event: event.sender and event.sender.emit(SENT)),
    "server.emit_to": lambda ends: ends.reach_client(lambda event: ends.server.emit_to(event.sender or "", SENT)),
    "async emit": lambda ends: ends.run(lambda client: client.emit(SENT)),
    "async request": lambda ends: ends.run(lambda client: client.request(SENT, timeout=DEADLINE)),
    "async submit": lambda ends: ends.run(submit),
}


@pytest.fixture
def ends(location) -> Iterator[Ends]:
    with Server(location) as server, ticked(server), Client(server.location) as client, contextlib.ExitStack() as stack:
        yield Ends(server, client, stack)


def check(event: Event) -> None:
    assert (event.name, list(event.args), event.kwargs) == ("call", [1, "two"], TAKEN)
    assert event.headers == HEADERS


@pytest.mark.parametrize("operation", OPERATIONS)
def test_headers_reach_the_listener(ends, operation):
    OPERATIONS[operation](ends)
    check(ends.received.get(timeout=DEADLINE))


def test_headers_of_a_job_reach_the_handler_of_a_worker(location):
    received: SimpleQueue[Event] = SimpleQueue()
    with Broker(location) as broker, Worker(broker.location) as worker, Client(broker.location) as client:

        @worker.on("call", pass_event=True)
        def call(event: Event) -> int:
            received.put(event)
            return len(event.args)

        threads = [threading.Thread(target=each.run) for each in (broker, worker)]
        for thread in threads:
            thread.start()
        try:
            assert client.request(SENT, timeout=DEADLINE) == 2
            check(received.get(timeout=DEADLINE))
        finally:
            for each, thread in ((worker, threads[1]), (broker, threads[0])):
                each.stop()
                thread.join(DEADLINE)


def test_a_received_event_can_be_forwarded_with_its_headers(ends):
    ends.server.add_listener("first", lambda event: ends.server.publish(event), pass_event=True)
    heard: SimpleQueue[Event] = SimpleQueue()
    ends.client.subscribe("first", heard.put, pass_event=True)
    ends.client.emit(Event("first", (1,), headers=HEADERS))
    assert heard.get(timeout=DEADLINE).headers == HEADERS


@pytest.mark.parametrize("operation", ["emit", "request", "submit"])
def test_arguments_beside_an_event_and_malformed_events_are_refused(ends, operation):
    call = getattr(ends.client, operation)
    for event, args in (
        (SENT, (1,)),
        (Event("call", "abc"), ()),  # type: ignore[arg-type]
        (Event("call", (), {}, {1: "x"}), ()),  # type: ignore[dict-item]
        (Event(5), ()),  # type: ignore[arg-type]
        (5, ()),
    ):
        with pytest.raises(TypeError):
            call(event, *args)
