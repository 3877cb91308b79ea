"""Interrupts and re-entrant calls at each line that a public call of a server, broker, worker or pair executes.

By default a sample of the lines is taken; REMIT_INTERRUPTS=all takes all of them.
"""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pytest
from injection import Injection, Interrupted, call_with, interrupt
from waiting import DEADLINE, tick_until

from remit import Broker, Client, Location, Pair, Server, Worker, current_job
from remit.errors import PeerLost, RemitError, RequestFailed

ALL = os.environ.get("REMIT_INTERRUPTS") == "all"
STRIDE = 1 if ALL else 89
"""Every so many lines are tried."""
LINES = 5_000
"""More than any of the calls executes."""
MISSES = 4 if ALL else 1
"""Calls in a row that end before their line, after which a sweep ends."""
FAST = ("memory", "unix")
"""Transports whose code is in this process, and whose calls are swept."""


def within(seconds: float, call: Callable[[], Any]) -> Any:
    """Return what ``call`` returns in another thread; fail if it takes longer."""
    results: list[Any] = []
    errors: list[BaseException] = []

    def run() -> None:
        try:
            results.append(call())
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    thread.join(seconds)
    assert not thread.is_alive(), "a later call hangs"
    if errors:
        raise errors[0]
    return results[0]


def sweep(check: Callable[[int], Injection]) -> None:
    """Call ``check`` with every line, or each STRIDE-th one, until the call ends before it."""
    # Not at the first such call: what a tick does depends on what has arrived.
    missed = 0
    for line in range(random.Random(STRIDE).randint(1, STRIDE), LINES, STRIDE):
        missed = missed + 1 if check(line).place is None else 0
        if missed == MISSES:
            return
    raise AssertionError(f"the call executes more than {LINES} lines")


@pytest.fixture
def swept(location: Location, transport_name: str) -> Location:
    if transport_name not in FAST:
        pytest.skip("the sweeps take the transports of the standard library")
    return location


pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
"""The injected exception may be raised in a finalizer that the collector runs."""
NUMBERS = itertools.count(10_000)
"""What nested calls publish or emit."""


class Ends:
    """A server and its client, which emits, requests and subscribes."""

    def __init__(self, location: Location) -> None:
        self.heard: list[int] = []
        self.published: list[int] = []
        self.back: list[int] = []
        self.server = Server(location)
        self.server.add_listener("n", self.heard.append)
        self.server.add_listener("echo", lambda value: value)
        self.server.add_listener("hello", lambda event: self.senders.append(event.sender), pass_event=True)
        self.senders: list[Any] = []
        self.client = Client(self.server.location)
        self.client.add_listener("back", self.back.append)
        subscribing = threading.Thread(target=lambda: self.client.subscribe("p", self.published.append))
        subscribing.start()
        self.client.emit("hello")
        tick_until(self.server, lambda: self.senders and not subscribing.is_alive())
        self.number = 0

    def close(self) -> None:
        closing = threading.Thread(target=self.client.close)
        closing.start()
        tick_until(self.server, lambda: not closing.is_alive())
        self.server.close()

    def load(self) -> Any:
        """Send three events and a request, which are in the link then; return the future of the request."""
        for _ in range(3):
            self.number += 1
            self.client.emit("n", self.number)
        future = self.client.submit("echo", self.number, timeout=DEADLINE)
        time.sleep(0.004)
        return future

    def check(self, future: Any, place: object) -> None:
        """Everything arrives once and in order, and the request is answered."""
        with suppress(RequestFailed, PeerLost):  # The interrupt is the reply, or has cost the connection.
            tick_until(self.server, future.done, 10)
            assert future.result(0) == self.number, place
        tick_until(self.server, lambda: len(self.heard) >= self.number, 10)
        assert self.heard == list(range(1, self.number + 1)), place
        within(10, lambda: self.server.stats())
        assert self.client.flush(0.0) or (tick_until(self.server, lambda: self.client.flush(0.0), 10) is None), place


@contextmanager
def ends(location: Location) -> Iterator[Ends]:
    both = Ends(location)
    try:
        yield both
    finally:
        both.close()


def call_of(both: Ends, name: str) -> Callable[[], Any]:
    server = both.server
    calls: dict[str, Callable[[], Any]] = {
        "tick": server.tick,
        "tick with a limit": lambda: server.tick(2),
        "wait": lambda: server.wait(0.01),
        "run": lambda: server.run(0.01),
        "stats": server.stats,
        "stop": server.stop,
        "publish": lambda: server.publish("p", both.number, keep=True),
        "emit_to": lambda: server.emit_to(both.senders[0], "back", both.number),
        "sender.emit": lambda: both.senders[0].emit("back", both.number),
        "emit": lambda: server.emit("local", 1),
        "add_listener": lambda: server.add_listener("other", print),
    }
    return calls[name]


CALLS = ("tick", "tick with a limit", "wait", "run", "stats", "stop", "publish", "emit_to", "sender.emit", "emit")


@pytest.mark.parametrize("name", [*CALLS, "add_listener"])
def test_a_server_goes_on_after_an_interrupt_at_any_line(swept: Location, name: str) -> None:
    with ends(swept) as both:

        def check(line: int) -> Injection:
            future = both.load()
            outcome = call_with(interrupt, line, call_of(both, name))
            assert outcome.error is None, outcome.place
            both.check(future, outcome.place)
            return outcome

        sweep(check)
        back, published = len(both.back), len(both.published)
        assert within(10, lambda: both.server.publish("p", -1)) == 1
        within(10, lambda: both.server.emit_to(both.senders[0], "back", -1))
        tick_until(both.server, lambda: len(both.published) > published and len(both.back) > back, 10)
        assert both.published == [*sorted(set(both.published[:-1])), -1]
        assert len(set(both.back)) == len(both.back)


@pytest.mark.parametrize("name", ["tick", "wait", "publish", "emit_to"])
def test_a_server_may_be_called_at_any_line_of_its_own_calls(swept: Location, name: str) -> None:
    """As a finalizer or a signal handler does."""
    with ends(swept) as both:
        for nested in ("publish", "emit_to", "emit", "wait", "tick", "submit"):
            check_nested(both, name, nested)


def check_nested(both: Ends, name: str, nested: str) -> None:
    values: list[int] = []
    """Numbers that the nested calls have published or emitted."""

    def again() -> None:
        if nested == "submit":
            both.client.submit("echo", 1, timeout=DEADLINE)
            return
        if nested in ("publish", "emit_to"):
            values.append(next(NUMBERS))
        with suppress(RemitError):
            if nested == "publish":
                both.server.publish("p", values[-1])
            elif nested == "emit_to":
                both.server.emit_to(both.senders[0], "back", values[-1])
            else:
                call_of(both, nested)()

    def check(line: int) -> Injection:
        future = both.load()
        outcome = call_with(again, line, call_of(both, name))
        assert outcome.error is None, outcome.place
        both.check(future, outcome.place)
        return outcome

    sweep(check)
    target = both.published if nested == "publish" else both.back
    tick_until(both.server, lambda: set(values) <= set(target), 10)
    assert len(set(target)) == len(target) or nested != "emit_to"


def test_a_server_is_closed_after_an_interrupt_of_close(swept: Location) -> None:
    heard: list[int] = []

    def check(line: int) -> Injection:
        server = Server(swept)
        server.add_listener("n", heard.append)
        client = Client(server.location, linger=0.0)
        client.emit("n", 1)
        tick_until(server, lambda: client.flush(0.0))
        outcome = call_with(interrupt, line, server.close)
        assert outcome.error is None, outcome.place
        within(10, server.close)
        client.close()
        return outcome

    sweep(check)


def test_finalizers_publish_while_others_publish(location: Location) -> None:
    """The collector may run them at any allocation."""

    class Resource:
        def __init__(self) -> None:
            self.me = self

        def __del__(self) -> None:
            server.publish("gone", 1)

    with Server(location) as server, Client(server.location) as client:
        heard: list[int] = []
        subscribing = threading.Thread(target=lambda: client.subscribe("*", heard.append))
        subscribing.start()
        tick_until(server, lambda: not subscribing.is_alive())
        thresholds = gc.get_threshold()
        gc.set_threshold(10, 2, 2)
        try:

            def publish() -> None:
                for number in range(300):
                    Resource()
                    server.publish("x", number)

            within(20, publish)
        finally:
            gc.set_threshold(*thresholds)
        tick_until(server, lambda: heard)


def test_signals_at_random_moments_lose_nothing(location: Location) -> None:
    def raise_interrupted(*_: object) -> None:
        raise Interrupted

    with ends(location) as both:
        before = signal.signal(signal.SIGALRM, raise_interrupted)
        interrupted = 0
        try:
            for number in range(120 if ALL else 25):
                future = both.load()
                try:  # The outer one, because the signal may come anywhere in the inner one, also at its end.
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.00002 + 0.000017 * number)
                        for _ in range(100):
                            both.server.tick()
                            both.server.publish("p", both.number)
                        time.sleep(0.01)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupted += 1
                both.check(future, number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 5


@pytest.mark.parametrize("part", ["broker", "worker"])
def test_jobs_survive_an_interrupt_at_any_line(swept: Location, part: str) -> None:
    """A job runs once, or again with the next attempt number, and its client gets a reply."""
    runs: list[tuple[int, int]] = []

    def note(line: int) -> int:
        runs.append((line, current_job().attempt))
        return line

    with Broker(swept, lease=1.0) as broker:
        worker = Worker(broker.location)
        worker.add_handler("note", note)
        worker.add_handler("stop", worker.stop)
        run = broker.run if part == "worker" else worker.run
        thread = threading.Thread(target=run)
        thread.start()
        client = Client(broker.location)

        def go_on(future: Any) -> None:
            end = time.monotonic() + 10
            while not future.done():
                assert time.monotonic() < end, broker.stats()
                if part == "worker":
                    worker.run(0.05)
                elif not broker.tick():
                    broker.wait(0.02)

        def check(line: int) -> Injection:
            future = client.submit("note", line, timeout=DEADLINE)
            if part == "worker":
                stopped = client.submit("stop", timeout=DEADLINE)
                outcome = call_with(interrupt, line, lambda: worker.run(5))
                go_on(stopped)
            else:
                time.sleep(0.004)
                outcome = call_with(interrupt, line, broker.tick)
            assert outcome.error is None, outcome.place
            go_on(future)
            with suppress(RequestFailed, PeerLost):
                assert future.result(0) == line, outcome.place
            attempts = [attempt for number, attempt in runs if number == line]
            assert len(set(attempts)) == len(attempts), outcome.place
            return outcome

        sweep(check)
        client.close()
        if part == "worker":
            broker.stop()
            thread.join(DEADLINE)
        stopping = threading.Thread(target=worker.close)
        stopping.start()
        while stopping.is_alive() or thread.is_alive():
            broker.tick()
            broker.wait(0.02)


def test_a_pair_survives_an_interrupt_at_any_line(swept: Location) -> None:
    with Pair.bind(swept) as bound, Pair.connect(bound.location) as joined:

        def check(line: int) -> Injection:
            outcome = call_with(interrupt, line, lambda: bound.signal(line))
            assert outcome.error is None, outcome.place
            bound.signal(-line)
            while within(10, lambda: joined.wait(10)) != -line:
                pass
            joined.signal(line)
            waited = call_with(interrupt, line, lambda: bound.wait(10))
            if waited.interrupted:
                assert within(10, lambda: bound.wait(10)) == line, waited.place
            return outcome if outcome.place else waited

        sweep(check)
