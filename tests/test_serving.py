"""On an event loop: a server serves on whatever its listeners do, a client never makes the loop wait."""

from __future__ import annotations

import asyncio
import threading

import pytest
from internals import server_io
from loops import until
from waiting import DEADLINE

from remit import AsyncClient, AsyncServer, Event, Server
from remit.errors import RequestFailed, TransportError

PLACE = "memory://serving"


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
    assert [event.name for event, _ in errors] == ["cancelled", "cancelled"]  # Of the event and of the request.
    assert all("was cancelled" in str(error) for _, error in errors)


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
        await until(lambda: any(thread.name == "remit-aio" for thread in threading.enumerate()))
        await asyncio.to_thread(server.close)
        await asyncio.wait_for(serving, 10)

    asyncio.run(main())


def test_a_link_that_breaks_ends_the_service_with_its_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(**_: object) -> bool:
        raise TransportError("the lease is lost")

    async def main() -> None:
        server = AsyncServer(PLACE)
        monkeypatch.setattr(server_io(server).link_pump, "exchange", broken)
        with pytest.raises(TransportError, match="the lease is lost"):
            await asyncio.wait_for(server.serve(), 10)
        monkeypatch.undo()
        await server.aclose()
        Server(PLACE).close()

    asyncio.run(main())


# -- a client ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [1, 9000])
def test_the_loop_goes_on_while_a_request_or_a_large_event_waits_for_room(size: int) -> None:
    async def main() -> None:
        asked: list[bytes] = []
        server = AsyncServer(PLACE)
        server.add_listener("ask", lambda data: asked.append(data) or len(asked))
        async with AsyncClient(PLACE, queue=2 if size == 1 else 1000, window=1, queue_bytes=10_000) as client:
            emitting = [asyncio.create_task(client.emit("first", b"x" * size)) for _ in range(4)]
            asking = asyncio.create_task(client.request("ask", b"x" * size))
            for _ in range(20):
                await asyncio.sleep(0.001)
            assert not asking.done()
            async with server:
                assert await asking == 1
                await asyncio.gather(*emitting)
                assert await client.flush()

    asyncio.run(asyncio.wait_for(main(), 20))


def test_a_subscription_that_is_cancelled_before_it_began_ends_when_it_has() -> None:
    async def main() -> None:
        server = Server(PLACE)
        async with AsyncClient(PLACE) as client:
            subscribing = asyncio.create_task(client.subscribe("n", print))
            await until(lambda: client.stats().get("requests") == 1)
            subscribing.cancel()
            with pytest.raises(asyncio.CancelledError):
                await subscribing
            serving = asyncio.create_task(server.serve())
            assert await client.flush()
            assert server.stats()["subscriptions"] == 0
            serving.cancel()
        server.close()

    asyncio.run(asyncio.wait_for(main(), DEADLINE))
