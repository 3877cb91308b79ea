"""Asyncio: the two ends on an event loop, over every transport."""

from __future__ import annotations

import asyncio
import importlib.util
import threading
import time
from collections.abc import Callable, Coroutine
from typing import Any

import pytest
from internals import post, sessions_of
from loops import until
from ticking import ticked
from waiting import DEADLINE

from remit import AsyncClient, AsyncServer, Broker, Client, Server, Worker, current_job
from remit.errors import NoListener, RequestFailed, RequestTimeout, Undelivered

LOOPS = ["asyncio", *(["uvloop"] if importlib.util.find_spec("uvloop") else [])]


@pytest.fixture(params=LOOPS)
def run(request) -> Callable[[Coroutine[Any, Any, None]], None]:
    """Run a coroutine to its end on one of the loops."""

    def run(coroutine: Coroutine[Any, Any, None]) -> None:
        factory = importlib.import_module("uvloop").new_event_loop if request.param == "uvloop" else None
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(asyncio.wait_for(coroutine, DEADLINE))

    return run


def test_events_arrive_once_and_in_order(location, run):
    heard: list[int] = []

    async def main() -> None:
        async with AsyncServer(location) as server, AsyncClient(server.location) as client:

            @server.on("number")
            async def number(value: int) -> None:
                if value % 100 == 0:
                    await asyncio.sleep(0)
                heard.append(value)

            for value in range(2000):
                await client.emit("number", value)
            assert await client.flush()

    run(main())
    assert heard == list(range(2000))


def test_requests_are_answered_side_by_side(location, run):
    async def main() -> None:
        gate = asyncio.Event()
        async with AsyncServer(location) as server, AsyncClient(server.location) as client:

            @server.on("wait")
            async def wait(value: int) -> int:
                await gate.wait()
                return value

            server.add_listener("open", gate.set)
            server.add_listener("add", lambda a, b: a + b)

            @server.on("fail")
            async def fail() -> None:
                raise LookupError("not here")

            waiting = [asyncio.create_task(client.request("wait", value)) for value in range(10)]
            assert await client.request("add", 2, 3) == 5
            with pytest.raises(RequestFailed, match="LookupError: not here"):
                await client.request("fail")
            with pytest.raises(NoListener):
                await client.request("sing")
            await client.request("open")
            assert await asyncio.gather(*waiting) == list(range(10))

    run(main())


def test_to_cancel_a_request_loses_nothing(location, run):
    async def main() -> None:
        began = asyncio.Event()
        async with AsyncServer(location) as server, AsyncClient(server.location) as client:

            @server.on("slow")
            async def slow() -> None:
                began.set()
                await asyncio.sleep(0.01)

            server.add_listener("add", lambda a, b: a + b)
            for _ in range(20):
                task = asyncio.create_task(client.request("slow"))
                await began.wait()
                task.cancel()
                assert await client.request("add", 1, 2) == 3
                with pytest.raises(asyncio.CancelledError):
                    await task
            with pytest.raises(RequestTimeout):
                await client.request("slow", timeout=0.001)

    run(main())


def test_what_is_published_is_heard_on_the_loop(location, run):
    async def main() -> None:
        heard: list[int] = []
        loop = asyncio.get_running_loop()

        async def hear(number: int) -> None:
            assert asyncio.get_running_loop() is loop
            heard.append(number)

        async with AsyncServer(location) as server, AsyncClient(server.location) as client:
            await client.subscribe("n.*", hear)
            for number in range(100):
                server.publish("n.x", number)
            await until(lambda: len(heard) == 100)
            assert heard == list(range(100))

    run(main())


def test_the_plain_ends_and_the_async_ones_meet(location, run):
    heard: list[str] = []

    async def to_plain(server: Server) -> None:
        async with AsyncClient(server.location) as client:
            client.add_listener("back", lambda word: heard.append(word))
            await client.emit("there", "a")
            await until(lambda: heard == ["a"])

    with Server(location) as server:
        server.add_listener("there", lambda event: event.sender.emit("back", *event.args), pass_event=True)
        with ticked(server):
            run(to_plain(server))

    async def from_plain() -> None:
        async with AsyncServer(location) as server:
            server.add_listener("word", heard.append)
            client = Client(server.location)
            client.emit("word", "b")
            await until(lambda: "b" in heard)
            await asyncio.get_running_loop().run_in_executor(None, client.close)

    run(from_plain())


def test_an_async_listener_that_raises_is_reported_and_the_others_go_on(run):
    errors: list[str] = []
    heard: list[int] = []

    async def main() -> None:
        async with AsyncServer("memory://aio", on_error=lambda event, error: errors.append(str(error))) as server:

            @server.on("n")
            async def broken(number: int) -> None:
                raise ValueError(number)

            server.add_listener("n", heard.append)
            async with AsyncClient(server.location) as client:
                await client.emit("n", 1)
                await client.emit("n", 2)

    run(main())
    assert errors == ["1", "2"]
    assert heard == [1, 2]


def test_a_full_queue_is_awaited_and_the_loop_goes_on(run):
    """Nobody serves at first: to emit waits, but not the loop."""

    async def main() -> None:
        heard: list[int] = []
        server = AsyncServer("memory://full")
        server.add_listener("n", heard.append)
        async with AsyncClient(server.location, queue=10, window=10) as client:
            ticks = 0

            async def emit() -> None:
                for number in range(100):
                    await client.emit("n", number)

            task = asyncio.create_task(emit())
            while ticks < 20:
                await asyncio.sleep(0.001)
                ticks += 1
            assert not task.done()
            async with server:
                await task
                await until(lambda: len(heard) == 100)
        assert heard == list(range(100))

    run(main())


def test_who_serves_may_be_cancelled_and_begin_again(run):
    heard: list[int] = []

    async def main() -> None:
        gate = asyncio.Event()
        with Server("memory://again") as server:

            @server.on("n")
            async def hear(number: int) -> None:
                await gate.wait()
                heard.append(number)

            async with AsyncClient(server.location) as client:
                await client.emit("n", 1)
                await client.emit("n", 2)
                serving = asyncio.create_task(server.serve())
                await asyncio.sleep(0.05)
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving
                assert heard == []
                gate.set()
                serving = asyncio.create_task(server.serve())
                await until(lambda: len(heard) == 2)
                await client.flush()
                serving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await serving

    run(main())
    assert heard == [1, 2]


def test_what_is_lost_is_told(location, run):
    if location.port == 0:
        location = location.replace(port=9)

    async def main() -> None:
        with pytest.raises(Undelivered):
            async with AsyncClient(location, linger=0.05) as client:
                await client.emit("n", 1)

    run(main())


def test_an_async_listener_where_no_loop_is_is_told_and_not_passed_over(location):
    """Its coroutine would never run, and its event count as handled."""
    failed: list[tuple[str, str]] = []

    async def listener(value: int) -> None:
        raise AssertionError(value)

    def note(event, error) -> None:
        failed.append((event.name, str(error)))

    with Server(location, on_error=note) as server, ticked(server), Client(server.location, on_error=note) as client:
        server.add_listener("x", listener)
        server.add_listener("ask", lambda value: value)
        server.add_listener("ask", listener)
        server.add_listener("answer", lambda event: event.sender.emit("back", 1), pass_event=True)
        client.add_listener("back", listener)
        client.subscribe("news", listener)
        client.emit("x", 1)
        assert client.request("ask", 1) == 1
        client.emit("answer")
        server.publish("news", 1)
        with pytest.raises(RequestFailed, match="AsyncServer"):
            client.request("x", 1)
        deadline = time.monotonic() + DEADLINE
        while len(failed) < 5 and time.monotonic() < deadline:
            time.sleep(0.01)
    assert sorted(name for name, _ in failed) == ["ask", "back", "remit.published", "x", "x"]
    assert all("needs an event loop: use AsyncServer, AsyncClient" in words for _, words in failed)


def test_whoever_is_told_is_told_on_the_loop(location, run):
    """Progress and gaps, as all that an AsyncClient calls."""
    calls: list[tuple[str, int]] = []

    async def main(broker: Broker) -> None:
        async with AsyncClient(broker.location) as client:

            async def progress(done: int, total: int) -> None:
                await asyncio.sleep(0)
                calls.append((f"{done} of {total}", threading.get_ident()))

            assert await client.request("work", on_progress=progress) == "done"
            subscription = await client.subscribe(
                "n", print, on_gap=lambda missing: calls.append((f"gap {missing}", threading.get_ident()))
            )
            for session in sessions_of(broker.server):  # The worker's ignores it.
                post(broker.server, session, "remit.unsubscribed", subscription.id, "too slow")
            with pytest.raises(TypeError, match="must be callable"):
                await client.subscribe("n", 5)  # type: ignore[arg-type]
            await until(lambda: len(calls) == 3)  # An answer may overtake the progress before it.
        here = threading.get_ident()
        assert sorted(calls) == [("1 of 2", here), ("2 of 2", here), ("gap None", here)]

    def work() -> str:
        for done in (1, 2):
            current_job().progress(done, 2)
        return "done"

    with Broker(location) as broker, Worker(broker.location) as worker:
        worker.add_handler("work", work)
        threads = [threading.Thread(target=each.run) for each in (broker, worker)]
        for thread in threads:
            thread.start()
        run(main(broker))
        worker.stop()
        threads[1].join(DEADLINE)
        broker.stop()
        threads[0].join(DEADLINE)
