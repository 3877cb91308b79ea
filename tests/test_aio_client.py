"""An asyncio client: the methods of the plain one, several loops, and cancellation at any await."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import pickle
import threading
import types
from collections.abc import Callable, Coroutine, Generator
from typing import Any

import pytest
from loops import run, until
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import AsyncClient, AsyncServer, Client, Location, Server
from remit.errors import EmitTimeout, LinkClosed, QueueFull, Undelivered

PLACE = "memory://async-client"


# -- the same methods --------------------------------------------------------------------------------------------

EXCEPTIONS = {
    "AsyncClient.tick": "an AsyncClient always has threads that pump its link",
}


@pytest.mark.parametrize(("plain", "asynchronous"), [(Client, AsyncClient), (Server, AsyncServer)])
def test_each_method_of_a_plain_end_has_its_twin(plain, asynchronous):
    names = [name for name in dir(plain) if not name.startswith("_")]
    assert len(names) > 10
    for name in names:
        if f"{asynchronous.__name__}.{name}" in EXCEPTIONS:
            assert not hasattr(asynchronous, name)
            continue
        one, other = getattr(plain, name), getattr(asynchronous, name)
        assert isinstance(one, property) == isinstance(other, property)
        if not isinstance(one, property):
            mine, twin = inspect.signature(one).parameters, inspect.signature(other).parameters
            assert [(each.name, each.default, each.kind) for each in mine.values()] == [
                (each.name, each.default, each.kind) for each in twin.values()
            ], name


def test_the_listeners_of_a_client_are_registered_and_removed_as_those_of_a_plain_one(location):
    received: list[tuple[str, int]] = []

    async def main() -> None:
        async with AsyncServer(location) as server, AsyncClient(server.location) as client:
            server.add_listener("ask", lambda event: emit(event.sender), pass_event=True)
            here = threading.get_ident()

            def emit(sender: Any) -> None:
                for number in range(2):
                    sender.emit("n", number)

            @client.on("n")
            async def on(number: int) -> None:
                assert threading.get_ident() == here
                received.append(("on", number))

            def plain(number: int) -> None:
                received.append(("plain", number))

            client.once("n", lambda number: received.append(("once", number)))
            client.add_listener("n", plain)
            await client.request("ask")
            await until(lambda: len(received) == 5)
            assert received == [("on", 0), ("once", 0), ("plain", 0), ("on", 1), ("plain", 1)]
            assert client.remove_listener("n", plain)
            assert not client.remove_listener("n", plain)
            assert client.remove_listener("n", on)
            assert client.connected
            assert client.silence < DEADLINE
            await client.request("ask")
            assert await client.flush()
            assert len(received) == 5

    run(main)


def test_what_a_full_queue_demands_is_done_without_blocking_the_loop():
    async def main() -> None:
        async with AsyncClient(PLACE, queue=2, emit_timeout=0.05, linger=0.0) as client:
            for number in range(2):
                await client.emit("n", number)
            for wait in (client.emit("n", 3), client.request("n"), client.submit("n")):
                with pytest.raises(EmitTimeout, match="stayed full"):
                    await wait
            blocked = asyncio.create_task(client.emit("cancelled"))
            await asyncio.sleep(0)
            blocked.cancel()
            with pytest.raises(Undelivered) as raised:
                await client.close()
            assert sorted(event.args[0] for event in raised.value.events) == [0, 1]  # And not the cancelled one.
        async with AsyncClient(PLACE, queue=1, when_full="raise", linger=0.0) as client:
            await client.emit("n", 1)
            with pytest.raises(QueueFull):
                await client.emit("n", 2)
            with contextlib.suppress(Undelivered):
                await client.close()

    run(main)


# -- several loops -----------------------------------------------------------------------------------------------


def test_a_client_is_created_before_its_loop_and_used_by_one_loop_after_the_other(location):
    received: list[tuple[str, int, int]] = []
    loops: list[int] = []

    def note(kind: str) -> Callable[[int], Coroutine[Any, Any, None]]:
        async def listener(number: int) -> None:
            await asyncio.sleep(0)
            received.append((kind, number, id(asyncio.get_running_loop())))

        return listener

    with Server(location) as server, ticked(server):
        server.add_listener("call", lambda event: event.sender.emit("back", *event.args), pass_event=True)
        client = AsyncClient(server.location)
        client.add_listener("back", note("listener"))

        async def use(number: int) -> None:
            loops.append(id(asyncio.get_running_loop()))
            if number == 0:
                await client.subscribe("news", note("subscription"))
            await client.emit("call", number)
            server.publish("news", number)
            await until(
                lambda: {(kind, sent) for kind, sent, _ in received} >= {("listener", number), ("subscription", number)}
            )

        for number in range(3):
            run(lambda number=number: use(number))  # type: ignore[misc]
            server.publish("news", 10 + number)  # Between two loops: the next one gets it.

        async def end() -> None:
            loops.append(id(asyncio.get_running_loop()))
            assert await client.flush()
            await until(lambda: len(received) == 9)
            await client.close()

        run(end)
    assert [number for kind, number, _ in received if kind == "subscription"] == [0, 10, 1, 11, 2, 12]
    assert [number for kind, number, _ in received if kind == "listener"] == [0, 1, 2]


def test_a_second_loop_is_refused_while_the_first_one_runs():
    async def main() -> None:
        async with AsyncServer(PLACE) as server, AsyncClient(PLACE) as client:
            server.add_listener("ping", lambda: "pong")
            for use in (lambda: client.emit("n"), lambda: client.request("ping"), lambda: client.subscribe("n", print)):
                with pytest.raises(RuntimeError, match="create one for each loop"):
                    await asyncio.to_thread(asyncio.run, use())
            assert await client.request("ping") == "pong"

    run(main)


def test_a_client_whose_loop_has_ended_closes_without_one():
    """At the exit of the program, for example: no loop runs the listeners of what arrives."""

    async def use() -> None:
        await client.subscribe("n", print)

    with Server(PLACE) as server, ticked(server):
        client = AsyncClient(PLACE)
        run(use)
        server.publish("n", 1)
        run(client.close)
        with pytest.raises(LinkClosed):
            run(lambda: client.emit("n"))


def test_a_listener_that_waits_for_a_loop_is_logged_and_runs_after_the_next_use(caplog):
    received: list[int] = []
    with Server(PLACE) as server, ticked(server):
        client = AsyncClient(PLACE)

        async def subscribe() -> None:
            await client.subscribe("n", received.append)

        async def listen() -> None:  # Without a use of the client, it cannot know this loop.
            server.publish("n", 1)
            await until(lambda: "await client.start()" in caplog.text)
            await client.start()
            await until(lambda: received)
            await client.close()

        run(subscribe)
        run(listen)
    assert received == [1]


def test_a_listener_may_close_its_client(location):
    async def main() -> None:
        async with AsyncServer(location) as server:
            client = AsyncClient(server.location)
            closed = asyncio.Event()

            async def close() -> None:
                await client.close()
                closed.set()

            client.add_listener("end", close)
            server.add_listener("ask", lambda event: event.sender.emit("end"), pass_event=True)
            async with asyncio.timeout(1.5):  # Less than the wait for a listener that does not end.
                await client.emit("ask")
                await closed.wait()

    run(main)


def test_a_pickled_client_connects_to_the_same_server(location):
    async def main() -> None:
        async with AsyncServer(location) as server, AsyncClient(server.location, codec="json", queue=7) as client:
            server.add_listener("ping", lambda: "pong")
            async with pickle.loads(pickle.dumps(client)) as copy:
                assert await copy.request("ping") == "pong"

    run(main)


# -- cancellation ------------------------------------------------------------------------------------------------


@types.coroutine
def cancelled_at(step: int, coroutine: Coroutine[Any, Any, Any]) -> Generator[Any, Any, int]:
    """Run a coroutine in this task, and cancel the task at the given await. Return the number of its awaits."""
    task = asyncio.current_task()
    assert task is not None
    awaits = 0
    send: Callable[[], Any] = lambda: coroutine.send(None)  # noqa: E731
    while True:
        try:
            waiting = send()
        except StopIteration:
            return awaits
        awaits += 1
        if awaits == step:
            task.cancel()
        try:
            yield waiting
        except BaseException as error:  # The coroutine handles it.
            send = lambda error=error: coroutine.throw(error)  # type: ignore[misc] # noqa: E731
        else:
            send = lambda: coroutine.send(None)  # noqa: E731


async def use_both(location: Location | str) -> None:
    async with AsyncServer(location) as server, AsyncClient(server.location) as client:

        @server.on("add")
        async def add(a: int, b: int) -> int:
            await asyncio.sleep(0)
            return a + b

        await client.emit("n", 1)
        await client.subscribe("news", print)
        assert await client.request("add", 1, 2) == 3
        assert await client.flush()
        server.publish("quiet", 1)


def test_a_cancelled_close_ends_early_and_reports_what_it_leaves(caplog):
    async def main() -> None:
        client = AsyncClient(PLACE, linger=DEADLINE)
        await client.emit("order", 7)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.05):
                await client.close()
        with pytest.raises(LinkClosed):
            await client.emit("order", 8)

    run(main)
    assert "'order'" in caplog.text


def test_a_cancellation_at_any_await_leaves_both_ends_closed():
    threads = set(threading.enumerate())
    awaits = cancellations = 0

    async def main(step: int) -> None:
        nonlocal awaits, cancellations
        try:
            awaits = max(awaits, await cancelled_at(step, use_both(PLACE)))
        except asyncio.CancelledError:
            cancellations += 1
        task = asyncio.current_task()
        assert task is not None
        while task.cancelling():
            task.uncancel()
        Server(PLACE).close()  # The location is free.
        await use_both(PLACE)

    run(lambda: main(0))
    assert awaits > 5
    for step in range(1, awaits + 1):
        run(lambda step=step: main(step))  # type: ignore[misc]
    assert cancellations > awaits / 2
    wait_until(lambda: not [each for each in set(threading.enumerate()) - threads if each.name.startswith("remit")])
