"""Callbacks that raise, also SystemExit, end no thread: the log names the exception, and the client works on."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import pytest
from internals import post, sessions_of
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import Client, Location, Server


class FailingAttribute(Exception):
    """Its traceback cannot be formatted."""

    @property
    def __cause__(self) -> None:  # type: ignore[override]
        raise LookupError("no cause")


ERRORS = [ValueError("no"), SystemExit("no"), GeneratorExit("no"), FailingAttribute("no")]


def names() -> set[str]:
    return {thread.name for thread in threading.enumerate() if thread.name.startswith("remit")}


def future_callback(server: Server, client: Client, fail: Callable[..., None]) -> None:
    client.submit("add", 1, 2).add_done_callback(fail)


def progress(server: Server, client: Client, fail: Callable[..., None]) -> None:
    client.submit("report", on_progress=fail)


def gap(server: Server, client: Client, fail: Callable[..., None]) -> None:
    got: list[int] = []
    client.subscribe("n", got.append, queue=1, on_gap=fail)
    for number in range(2000):
        server.publish("n", number)
    wait_until(lambda: got and got[-1] == 1999)


def listener(server: Server, client: Client, fail: Callable[..., None]) -> None:
    client.add_listener("back", fail)
    client.request("send back", timeout=DEADLINE)


def publication(server: Server, client: Client, fail: Callable[..., None]) -> None:
    client.subscribe("p", fail)
    server.publish("p", 1)


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize("use", [future_callback, progress, gap, listener, publication])
@pytest.mark.parametrize("on_error", [False, True], ids=["", "on_error"])
def test_a_callback_that_raises_ends_no_thread(
    use: Callable[..., None], error: BaseException, on_error: bool, caplog: pytest.LogCaptureFixture
) -> None:
    called = threading.Event()

    def fail(*_: Any) -> None:
        called.set()
        raise error

    def send_back(event: Any) -> None:
        event.sender.emit("back", 1)

    with Server("memory://callbacks") as server, ticked(server):
        server.add_listener("add", lambda a, b: a + b)
        server.add_listener("send back", send_back, pass_event=True)
        with Client(server.location, on_error=fail if on_error else None) as client:
            client.add_listener("first", print)  # Starts the threads.
            assert client.request("add", 1, 2, timeout=DEADLINE) == 3
            before = names()
            if use is progress:
                (session,) = sessions_of(server)
                server.add_listener("report", lambda: post(server, session, "remit.progress", 2, 1, 2))
            use(server, client, fail)
            assert called.wait(DEADLINE)
            wait_until(lambda: any(record.exc_info and record.exc_info[1] is error for record in caplog.records))
            assert client.request("add", 3, 4, timeout=DEADLINE) == 7
            got: list[int] = []
            client.subscribe("after", got.append)
            server.publish("after", 1)
            wait_until(lambda: got == [1])
            assert before <= names()


def test_the_callback_of_a_future_may_close_the_client(location: Location, caplog: pytest.LogCaptureFixture) -> None:
    closed = threading.Event()
    with Server(location) as server, ticked(server):
        server.add_listener("add", lambda a, b: a + b)
        client = Client(server.location)

        def close(_: object) -> None:
            client.close()
            closed.set()

        before = names()
        client.submit("add", 1, 2).add_done_callback(close)
        assert closed.wait(DEADLINE)
        wait_until(lambda: names() <= before)
    assert not [record.message for record in caplog.records if record.levelname == "ERROR"]
