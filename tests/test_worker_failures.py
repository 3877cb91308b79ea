"""Workers whose handlers fail in unusual ways, and the causes that broker and server report."""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from waiting import DEADLINE, wait_until

from remit import Broker, Client, Location, Server, Worker
from remit.errors import DeadLetter, LinkClosed, RequestFailed, RequestTimeout, Undelivered


class FailingText(Exception):
    """Its text cannot be made."""

    def __str__(self) -> str:
        raise LookupError("no text")

    __repr__ = __str__


class Unpicklable(Exception):
    """It holds a lock."""

    def __init__(self) -> None:
        super().__init__("cannot be pickled", threading.Lock())


class FailingAttribute(Exception):
    """Its traceback cannot be formatted."""

    @property
    def __notes__(self) -> list[str]:
        raise LookupError("no notes")


class FailingName(type):
    """The name of its classes cannot be read."""

    def __getattribute__(cls, name: str) -> Any:
        if name in ("__module__", "__qualname__", "__name__") and sys._getframe(1).f_globals is not globals():
            raise LookupError("no name")
        return super().__getattribute__(name)


class Nameless(Exception, metaclass=FailingName):
    """Raised by a class without a name."""


class OtherExit(BaseException):
    """No `Exception`, and none that the interpreter knows."""


FAILURES: dict[str, Callable[[], BaseException]] = {
    "surrogate": lambda: ValueError("no such file: caf\udce9.txt"),
    "failing text": FailingText,
    "failing note": lambda: _with_note(ValueError("noted"), FailingText()),
    "failing attribute": FailingAttribute,
    "nameless": Nameless,
    "unpicklable": Unpicklable,
    "large": lambda: ValueError("x" * 1_000_000),
    "exit": lambda: SystemExit("no"),
    "interrupt": KeyboardInterrupt,
    "generator exit": lambda: GeneratorExit("no"),
    "other exit": lambda: OtherExit("no"),
}


def _with_note(error: ValueError, note: object) -> ValueError:
    error.__notes__ = [note]  # type: ignore[list-item]
    return error


class Records(logging.Handler):
    """Keeps the log records of Remit, which reach no other handler: pytest-xdist cannot transmit surrogates."""

    def __init__(self) -> None:
        super().__init__()
        self.texts: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.texts.append(record.getMessage())

    def count(self, part: str) -> int:
        return sum(part in text for text in self.texts)


@pytest.fixture
def records() -> Iterator[Records]:
    logger, records = logging.getLogger("remit"), Records()
    logger.addHandler(records)
    logger.propagate = False
    yield records
    logger.propagate = True
    logger.removeHandler(records)


@contextmanager
def serving(run: Callable[[], None], stop: Callable[[], None]) -> Iterator[threading.Thread]:
    """Call ``run`` in a thread until ``stop`` has been called, also after exceptions that end it."""
    stopping = threading.Event()

    def go_on() -> None:
        while not stopping.is_set():
            try:
                run()
            except (SystemExit, KeyboardInterrupt, GeneratorExit, OtherExit):
                continue

    thread = threading.Thread(target=go_on)
    thread.start()
    try:
        yield thread
    finally:
        stopping.set()
        stop()
        thread.join(DEADLINE)
        assert not thread.is_alive()


def check_failures(client: Client) -> None:
    """Request each failure, and something that works in between."""
    for name, make in FAILURES.items():
        with pytest.raises(RequestFailed) as caught:
            client.request("fail", name, timeout=DEADLINE)
        assert type(make()).__qualname__ in caught.value.type_name, name
        assert client.request("work", name, timeout=DEADLINE) == name


def fail(name: str) -> None:
    raise FAILURES[name]()


@pytest.mark.parametrize("threads", [1, 2])
def test_a_worker_answers_whatever_a_handler_raises(location: Location, threads: int, records: Records) -> None:
    async def fail_later(name: str) -> None:
        fail(name)

    with (
        Broker(location) as broker,
        serving(broker.run, broker.stop),
        Worker(broker.location, threads=threads) as worker,
        Client(broker.location) as client,
    ):
        worker.add_handler("fail", fail)
        worker.add_handler("fail later", fail_later)
        worker.add_handler("work", str)
        with serving(worker.run, worker.stop):
            check_failures(client)
            for name in ("surrogate", "exit", "generator exit"):
                with pytest.raises(RequestFailed):
                    client.request("fail later", name, timeout=DEADLINE)
            together = [client.submit("work", number) for number in range(8)]
            assert [future.result(DEADLINE) for future in together] == [str(number) for number in range(8)]
        stats = broker.stats()
    assert (stats["in_hand"], stats["failed"]) == (0, len(FAILURES) + 3)
    assert records.count("a handler of 'fail' raised") == len(FAILURES)


@pytest.mark.usefixtures("records")
def test_a_server_answers_whatever_a_listener_raises(location: Location) -> None:
    failed: list[str] = []
    with Server(location, on_error=lambda event, error: failed.append(event.args[0])) as server:
        server.add_listener("fail", fail)
        server.add_listener("work", str)
        with serving(server.run, server.stop), Client(server.location) as client:
            check_failures(client)
    exits = ("exit", "interrupt", "generator exit", "other exit")
    assert failed == [name for name in FAILURES if name not in exits]
    assert server.stats()["failed"] == len(failed)


@pytest.mark.parametrize("size", [1_000_000, 10_000])
def test_an_exception_that_exceeds_a_frame_arrives_shortened(transport_name: str, short_path, size: int) -> None:
    if transport_name != "unix":
        pytest.skip("the limit of a frame is an option of this transport")

    def fail_at_length() -> None:
        raise KeyError("begin" + "x" * size + "end")

    with Server(f"unix://{short_path / 's'}?max_frame=8KiB") as server, serving(server.run, server.stop):
        server.add_listener("fail", fail_at_length)
        with Client(server.location) as client, pytest.raises(RequestFailed, match=r"begin(.|\n)*end") as caught:
            client.request("fail", timeout=DEADLINE)
    assert caught.value.type_name == "builtins.KeyError"


def test_a_process_may_end_while_its_worker_runs_jobs(crossing_location: Location) -> None:
    code = """
import sys, threading, time
from remit import Worker
worker = Worker(sys.argv[1], threads=2)
worker.add_handler("hang", lambda: (print("begun", flush=True), time.sleep(60)))
threading.Thread(target=worker.run, daemon=True).start()
sys.stdin.readline()
"""
    with Broker(crossing_location) as broker, serving(broker.run, broker.stop), Client(broker.location) as client:
        process = subprocess.Popen(
            [sys.executable, "-c", code, broker.location.url], stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        future = client.submit("hang", timeout=DEADLINE)
        assert process.stdout is not None
        process.stdout.readline()
        process.communicate(b"\n", timeout=20)
        wait_until(lambda: broker.stats()["requeued"] == 1)
        future.cancel()


def test_a_job_that_holds_the_gil_runs_once(crossing_location: Location) -> None:
    code = """
import sys
from remit import Worker
with Worker(sys.argv[1]) as worker:
    worker.add_handler("hold", lambda: len(bin(3 ** 2_500_000)))  # One call in C: no other thread runs.
    worker.add_handler("ready", lambda: True)
    worker.run()
"""
    with Broker(crossing_location, lease=0.1) as broker, serving(broker.run, broker.stop):
        command = [sys.executable, "-c", code, broker.location.url]
        workers = [subprocess.Popen(command) for _ in range(2)]
        try:
            with Client(broker.location) as client:
                wait_until(lambda: broker.stats()["workers"] == 2)
                assert client.request("hold", timeout=DEADLINE) > 0
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()
    assert broker.stats()["requeued"] == 0


def test_a_late_result_is_accepted_while_no_other_worker_has_finished(crossing_location, monkeypatch) -> None:
    """As of a worker on another host, whose process the broker cannot see."""
    monkeypatch.setattr("remit._patterns.jobs.is_running", lambda process: False)
    code = """
import sys, time
from remit import Worker
with Worker(sys.argv[1]) as worker:
    @worker.on("hold")
    def hold():
        n = len(bin(3 ** 9_000_000))
        return n
    worker.run()
"""
    with Broker(crossing_location, lease=0.2) as broker, serving(broker.run, broker.stop):
        worker = subprocess.Popen([sys.executable, "-c", code, broker.location.url])
        try:
            with Client(broker.location) as client:
                wait_until(lambda: broker.stats()["workers"] == 1)
                future = client.submit("hold", timeout=DEADLINE)
                wait_until(lambda: broker.stats()["requeued"] >= 1)
                assert future.result(DEADLINE) > 0
        finally:
            worker.kill()
            worker.wait()


def test_a_request_that_no_worker_takes_names_the_cause(location: Location, records: Records) -> None:
    with Broker(location) as broker, serving(broker.run, broker.stop), Client(broker.location) as client:
        for _ in range(3):
            with pytest.raises(RequestTimeout, match="no worker has registered 'resise'"):
                client.request("resise", timeout=0.5)
        with Worker(broker.location) as worker:
            worker.add_handler("resise", lambda: "taken")
            future = client.submit("resise", timeout=DEADLINE)
            with serving(worker.run, worker.stop):
                assert future.result(DEADLINE) == "taken"
    assert records.count("no worker has registered") == 1


def test_an_event_that_nothing_handles_is_logged_once(location: Location, records: Records) -> None:
    with Broker(location) as broker, serving(broker.run, broker.stop), Client(broker.location) as client:
        for _ in range(3):
            client.emit("news")
        assert client.flush(DEADLINE)
    assert records.count("no listener for event 'news': a broker handles requests only: use client.request()") == 1


def test_a_dead_letter_names_the_cause(location: Location) -> None:
    with Broker(location, max_attempts=1) as broker, serving(broker.run, broker.stop):
        worker = Worker(broker.location)
        begun, ended = threading.Event(), threading.Event()
        worker.add_handler("leave", lambda: (begun.set(), ended.wait(DEADLINE)))

        def run() -> None:
            with pytest.raises(LinkClosed):
                worker.run()

        thread = threading.Thread(target=run)
        thread.start()
        with Client(broker.location) as client:
            future = client.submit("leave", timeout=DEADLINE)
            assert begun.wait(DEADLINE)
            with suppress(Undelivered):
                worker.client.close(0)
            with pytest.raises(DeadLetter, match=r"1 workers died of 'leave'; the last one (has|was)"):
                future.result(DEADLINE)
        ended.set()
        thread.join(DEADLINE)


def test_a_name_has_one_handler() -> None:
    worker = Worker("memory://handlers")
    worker.add_handler("twice", print)
    with pytest.raises(ValueError, match="a handler for 'twice' already"):
        worker.add_handler("twice", str)
