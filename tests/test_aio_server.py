"""An asyncio server: order for each client, clients side by side, cancellation, and the loss of its location."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from random import Random
from typing import Any

import pytest
from internals import server_io
from loops import run, until
from waiting import DEADLINE

from remit import AsyncClient, AsyncServer, Client, Server
from remit.errors import (
    LinkClosed,
    LocationInUse,
    ReentrantTick,
    RequestFailed,
    RequestTimeout,
    TransportError,
    WouldDeadlock,
)

PLACE = "memory://async-server"


def test_a_slow_listener_of_one_client_delays_no_other_client(location):
    handled: list[tuple[str, int]] = []

    async def main() -> None:
        gate = asyncio.Event()
        async with (
            AsyncServer(location) as server,
            AsyncClient(server.location) as slow,
            AsyncClient(server.location) as quick,
        ):

            @server.on("number")
            async def number(client: str, value: int) -> None:
                if client == "slow":
                    await gate.wait()
                handled.append((client, value))

            server.add_listener("count", lambda: len(handled))
            for value in range(50):
                await slow.emit("number", "slow", value)
            for value in range(50):
                await quick.emit("number", "quick", value)
            assert await quick.flush()
            assert await quick.request("count") == 50
            assert not await slow.flush(0.05)  # Acknowledged after the listener has returned.
            gate.set()
            assert await slow.request("count") == 100  # Behind the events of the same client.
            assert await slow.flush()

    run(main)
    for client in ("slow", "quick"):
        assert [value for who, value in handled if who == client] == list(range(50))


@pytest.mark.parametrize("same_client", [True, False])
def test_a_listener_of_an_event_may_await_a_request_to_its_own_server(location, same_client):
    replies: list[list[int]] = []

    async def main() -> None:
        async with (
            AsyncServer(location) as server,
            AsyncClient(server.location) as first,
            AsyncClient(server.location) as second,
        ):
            server.add_listener("double", lambda number: 2 * number)

            @server.on("ask")
            async def ask(number: int) -> None:
                client = first if same_client else second
                replies.append(await asyncio.gather(*(client.request("double", number + i) for i in range(2))))

            for number in range(5):
                await first.emit("ask", number)
            assert await first.flush()

    run(main)
    assert replies == [[2 * number, 2 * number + 2] for number in range(5)]


def test_at_most_so_many_async_listeners_run_at_a_time(location):
    async def main() -> None:
        running = most = 0

        async with AsyncServer(location, concurrency=3) as server, AsyncClient(server.location) as client:

            @server.on("work")
            async def work() -> None:
                nonlocal running, most
                running += 1
                most = max(most, running)
                await asyncio.sleep(0.005)
                running -= 1

            await asyncio.gather(*(client.request("work") for _ in range(20)))
        assert most == 3

    run(main)


# -- cancellation ------------------------------------------------------------------------------------------------


async def cancel_task(client: AsyncClient, began: asyncio.Event) -> None:
    task = asyncio.create_task(client.request("wait"))
    await began.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def cancel_future(client: AsyncClient, began: asyncio.Event) -> None:
    future = await client.submit("wait")
    await began.wait()
    future.cancel()


async def time_out(client: AsyncClient, began: asyncio.Event) -> None:
    with pytest.raises(RequestTimeout):
        await client.request("wait", timeout=0.2)


async def time_out_outside(client: AsyncClient, began: asyncio.Event) -> None:
    with pytest.raises(TimeoutError):
        await asyncio.wait_for(client.request("wait"), 0.2)


async def close(client: AsyncClient, began: asyncio.Event) -> None:
    future = await client.submit("wait")
    await began.wait()
    await client.aclose()
    with pytest.raises(LinkClosed):
        await future


@pytest.mark.parametrize("give_up", [cancel_task, cancel_future, time_out, time_out_outside, close])
def test_a_listener_is_cancelled_when_its_caller_gives_up(location, give_up):
    async def main() -> None:
        began, cancelled = asyncio.Event(), asyncio.Event()
        async with AsyncServer(location) as server, AsyncClient(server.location) as client:

            @server.on("wait")
            async def wait() -> None:
                began.set()
                try:
                    await asyncio.sleep(DEADLINE)
                except asyncio.CancelledError:
                    cancelled.set()
                    raise

            server.add_listener("ping", lambda: "pong")
            assert await client.request("ping") == "pong"  # Connected: the next request begins soon.
            await give_up(client, began)
            await cancelled.wait()

    run(main)


# -- the end of the service --------------------------------------------------------------------------------------


def lose(monkeypatch: pytest.MonkeyPatch, server: Server, error: Exception) -> None:
    """Let the link of a server fail, as that of Redis does when another server has taken the lease."""

    def exchange(**_: object) -> bool:
        raise error

    monkeypatch.setattr(server_io(server).link_pump, "exchange", exchange)
    server.wake()


@pytest.mark.parametrize("error", [LocationInUse("taken over"), TransportError("gone")])
def test_a_server_that_loses_its_location_ends_its_block_with_the_cause(monkeypatch, caplog, location, error):
    after: list[str] = []

    async def main() -> None:
        with pytest.raises(type(error)) as raised:  # noqa: PT012 - the exit of the block raises
            async with AsyncServer(location) as server:
                asyncio.get_running_loop().call_later(0.01, lose, monkeypatch, server, error)
                try:
                    await asyncio.get_running_loop().create_future()
                finally:
                    assert not server.is_open
        assert raised.value is error
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0  # The cancellation of the block is over.
        await asyncio.sleep(0)
        after.append("goes on")

    with caplog.at_level(logging.ERROR, "remit"):
        run(main)
    assert after == ["goes on"]
    assert [record.message for record in caplog.records if "lost its location" in record.message]


def test_an_exception_of_the_block_is_raised_and_the_cause_is_its_note(monkeypatch):
    async def main() -> None:
        with pytest.raises(LookupError) as raised:  # noqa: PT012 - the exit of the block raises
            async with AsyncServer(PLACE) as server:
                lose(monkeypatch, server, TransportError("gone"))
                try:
                    await asyncio.sleep(DEADLINE)
                except asyncio.CancelledError:
                    raise LookupError("in the block") from None
        assert "gone" in "".join(raised.value.__notes__)

    run(main)


def test_a_plain_server_that_loses_its_location_ends_serve_with_the_cause(monkeypatch):
    async def main() -> None:
        with Server(PLACE) as server:
            assert server.is_open
            asyncio.get_running_loop().call_later(0.01, lose, monkeypatch, server, TransportError("gone"))
            with pytest.raises(TransportError, match="gone"):
                await server.serve()
            assert not server.is_open
            monkeypatch.undo()

    run(main)


def test_an_async_listener_that_raises_system_exit_ends_the_service():
    async def leave() -> None:
        raise SystemExit(3)

    async def main(name: str, server: Server) -> None:
        server.add_listener("leave", leave)
        async with AsyncClient(PLACE) as client:
            await (client.emit("leave") if name == "event" else client.submit("leave"))
            with pytest.raises(SystemExit):
                await server.serve()

    for name in ("event", "request"):
        with Server(PLACE) as server:
            run(lambda name=name, server=server: main(name, server))  # type: ignore[misc]


def test_a_closed_server_cannot_be_entered():
    async def main() -> None:
        server = AsyncServer(PLACE)
        async with server:
            pass
        assert not server.is_open
        with pytest.raises(LinkClosed):
            await server.__aenter__()

    run(main)


@pytest.mark.parametrize("stop", ["in a listener", "in another thread", "before"])
def test_stop_ends_serve(stop):
    async def main() -> None:
        with Server(PLACE) as server:
            server.add_listener("stop", server.stop)
            async with AsyncClient(PLACE) as client:
                if stop == "before":
                    server.stop()
                serving = asyncio.create_task(server.serve())
                if stop == "in a listener":
                    await client.emit("stop")
                elif stop == "in another thread":
                    await asyncio.sleep(0.01)
                    threading.Thread(target=server.stop).start()
                await serving
                assert server.is_open
                server.add_listener("ping", lambda: "pong")
                serving = asyncio.create_task(server.serve())  # It may be served again.
                assert await client.request("ping") == "pong"
                server.stop()
                await serving

    run(main)


def test_stop_ends_serve_within_the_block_of_the_server():
    async def main() -> None:
        async with AsyncServer(PLACE) as server:
            asyncio.get_running_loop().call_later(0.01, server.stop)
            await server.serve()

    run(main)


def test_events_that_arrived_before_serve_are_dispatched_though_nothing_follows(location):
    received: list[int] = []

    async def main() -> None:
        with Server(location) as server:
            server.add_listener("n", received.append)
            server.add_listener("ping", lambda: "pong")
            # At most once: no probe of the client follows and wakes the server.
            async with AsyncClient(server.location, delivery="at_most_once") as client:
                for number in range(3):
                    serving = asyncio.create_task(server.serve())
                    assert await client.request("ping") == "pong"
                    await until(lambda number=number: len(received) == number)
                    server.stop()
                    await serving
                    await client.emit("n", number)
                    await until(lambda: not client.stats()["queued"])
                serving = asyncio.create_task(server.serve())
                await until(lambda: len(received) == 3)
                server.stop()
                await serving

    run(main)


# -- beside the loop ---------------------------------------------------------------------------------------------


def test_a_plain_client_on_the_thread_of_the_loop_raises_instead_of_waiting(location):
    async def main() -> None:
        async with AsyncServer(location) as server:
            server.add_listener("ping", lambda: "pong")
            client = Client(server.location, linger=0.01)

            @server.on("ask")
            async def ask() -> Any:
                return client.request("ping")

            with pytest.raises(WouldDeadlock):
                client.request("ping")
            with pytest.raises(WouldDeadlock):
                client.subscribe("n", print)
            async with AsyncClient(server.location) as other:
                with pytest.raises(RequestFailed, match="WouldDeadlock"):
                    await other.request("ask")
            assert await asyncio.wrap_future(client.submit("ping")) == "pong"
            with pytest.raises(ReentrantTick, match="event loop"):
                server.tick()
            with pytest.raises(ReentrantTick, match="event loop"):
                await Server.serve(server)
            await asyncio.to_thread(client.close)

    run(main)


def test_local_events_reach_async_listeners_from_every_thread():
    async def main() -> None:
        heard: list[int] = []

        async def hear(number: int) -> None:
            await asyncio.sleep(0)
            heard.append(number)

        async with AsyncServer(PLACE) as server:
            server.add_listener("n", hear)
            server.emit("n", 1)
            await until(lambda: heard == [1])
            await asyncio.to_thread(server.emit, "n", 2)
            await until(lambda: heard == [1, 2])

    run(main)


def test_the_default_executor_of_the_loop_is_not_used(location):
    async def main() -> None:
        def refuse(*_: object) -> None:
            raise AssertionError("used the default executor")

        asyncio.get_running_loop().run_in_executor = refuse  # type: ignore[assignment, method-assign]
        async with AsyncServer(location) as server, AsyncClient(server.location, queue=2, window=1) as client:
            server.add_listener("n", print)
            server.add_listener("ping", lambda: "pong")
            await client.subscribe("n", print)
            for number in range(20):
                await client.emit("m", number)
            assert await client.request("ping") == "pong"
            assert await client.flush()

    run(main)


def test_a_server_whose_loop_was_closed_is_served_by_the_next_loop():
    with Server(PLACE) as server:
        server.add_listener("ping", lambda: "pong")
        loop = asyncio.new_event_loop()
        left = loop.create_task(server.serve())
        loop.run_until_complete(asyncio.sleep(0.01))
        loop.close()  # Without cancelling its task.

        async def main() -> None:
            serving = asyncio.create_task(server.serve())
            async with AsyncClient(PLACE) as client:
                assert await client.request("ping") == "pong"
            serving.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await serving

        run(main)
        del left


async def serve_again_and_again(server: Server, random: Random, ended: asyncio.Event) -> None:
    """Serve, and stop or cancel that at any moment, until ``ended``."""
    while not ended.is_set():
        serving = asyncio.create_task(server.serve(concurrency=random.choice([1, 2, 5, 1000])))
        await asyncio.sleep(0.02 * random.random())
        if random.random() < 0.5:
            serving.cancel()
        server.stop()
        await asyncio.wait([serving])


async def emit_and_ask(server: Server, random: Random, number: int) -> None:
    async with AsyncClient(server.location) as client:
        requests = []
        for value in range(60):
            await client.emit(random.choice(["slow", "plain"]), number, value)
            if random.random() < 0.2:
                requests.append((value, asyncio.create_task(client.request("ask", value))))
                await asyncio.sleep(0)
            if random.random() < 0.05 and requests:
                requests.pop()[1].cancel()
        for value, task in requests:
            with contextlib.suppress(RequestFailed):  # The service stopped while its listener ran.
                assert await task == value
        assert await client.flush(DEADLINE)


@pytest.mark.parametrize("seed", range(int(os.environ.get("REMIT_SEEDS", "3"))))
def test_order_and_replies_survive_a_service_that_stops_and_begins_again(location, seed):
    """Of four clients with plain and async listeners, at any bound: each event is handled once, in order."""
    random = Random(seed)
    handled: dict[int, list[int]] = {}

    def plain(client: int, number: int) -> None:
        handled.setdefault(client, []).append(number)

    async def slow(client: int, number: int) -> None:
        await asyncio.sleep(random.choice([0, 0, 0.001, 0.003]))
        plain(client, number)

    async def ask(number: int) -> int:
        await asyncio.sleep(random.choice([0, 0.001]))
        return number

    async def main() -> None:
        with Server(location) as server:
            for listener in (plain, slow, ask):
                server.add_listener(listener.__name__, listener)
            ended = asyncio.Event()
            serving = asyncio.create_task(serve_again_and_again(server, random, ended))
            await asyncio.gather(*(emit_and_ask(server, random, number) for number in range(4)))
            ended.set()
            await serving

    run(main)
    assert handled == {number: list(range(60)) for number in range(4)}
