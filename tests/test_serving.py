"""A server on an event loop serves on whatever its listeners do, and says so when it cannot."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest
from waiting import DEADLINE

from remit import AsyncClient, AsyncServer, Event, Server
from remit.errors import RequestFailed, TransportError

PLACE = "memory://serving"


async def until(fact: Callable[[], object]) -> None:
    async with asyncio.timeout(DEADLINE):
        while not fact():
            await asyncio.sleep(0.002)


async def cancelled() -> None:
    """Await something that somebody else has cancelled."""
    inner = asyncio.create_task(asyncio.sleep(DEADLINE))
    inner.cancel()
    await inner


def test_a_listener_whose_own_wait_was_cancelled_is_reported_and_the_server_goes_on() -> None:
    errors: list[tuple[Event, Exception]] = []
    heard: list[int] = []

    async def main() -> None:
        async with (
            AsyncServer(PLACE, on_error=lambda *told: errors.append(told)) as server,
            AsyncClient(PLACE) as client,
        ):
            server.add_listener("cancelled", cancelled)
            server.add_listener("n", heard.append)
            await client.emit("cancelled")
            await client.emit("n", 1)
            assert await client.flush(10)
            with pytest.raises(RequestFailed, match="CancelledError"):
                await client.request("cancelled")

    asyncio.run(main())
    assert heard == [1]
    ((event, error),) = errors
    assert event.name == "cancelled"
    assert "was cancelled" in str(error)


def test_what_comes_behind_a_listener_that_ends_the_program_is_not_confirmed() -> None:
    heard: list[int] = []

    def hear(number: int) -> None:
        heard.append(number)
        if number == 1:
            raise SystemExit

    async def serve(server: Server) -> None:
        server.add_listener("n", hear)
        await server.serve()

    async def main(server: Server) -> None:
        async with AsyncClient(PLACE) as client:
            for number in range(4):
                await client.emit("n", number)
            await until(lambda: client.stats()["connections"] == 1)
            with pytest.raises(SystemExit):
                await serve(server)
            assert heard == [0, 1]
            again = asyncio.create_task(server.serve())
            assert await client.flush(10)
            again.cancel()

    with Server(PLACE) as server:
        asyncio.run(main(server))
    assert heard == [0, 1, 2, 3]


def test_a_server_that_is_closed_ends_its_service() -> None:
    async def main() -> None:
        server = Server(PLACE)
        serving = asyncio.create_task(server.serve())
        await until(lambda: server.later is not None)
        await asyncio.to_thread(server.close)
        await asyncio.wait_for(serving, 10)

    asyncio.run(main())


def test_a_link_that_breaks_ends_the_service_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> bool:
        raise TransportError("the lease is lost")

    async def main() -> None:
        server = AsyncServer(PLACE)
        monkeypatch.setattr(server._endpoint, "pump", broken)
        with pytest.raises(TransportError, match="the lease is lost"):
            await asyncio.wait_for(server.serve(), 10)
        monkeypatch.undo()
        async with server:
            monkeypatch.setattr(server._endpoint, "pump", broken)
            server.wake()
            await until(lambda: server._serving is not None and server._serving.done())
            monkeypatch.undo()
            with pytest.raises(TransportError, match="the lease is lost"):
                await server.aclose()
        Server(PLACE).close()

    asyncio.run(main())
