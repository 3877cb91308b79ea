"""Interrupts and re-entrant calls at each line that a public call of a server, broker, worker or pair executes.

By default a sample of the lines is taken; REMIT_INTERRUPTS=all takes all of them.
"""

from __future__ import annotations

import asyncio
import gc
import itertools
import os
import random
import signal
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import CancelledError, Future
from contextlib import ExitStack, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import pytest
from injection import Injection, Interrupted, call_with, interrupt_by_turns, within
from waiting import DEADLINE, tick_until

from remit import AsyncServer, Broker, Client, Location, Pair, Server, Worker, current_job
from remit.errors import PairBusy, PeerLost, ReentrantTick, RequestFailed, WouldDeadlock

ALL = os.environ.get("REMIT_INTERRUPTS") in ("all", "each")
STRIDE = 1 if ALL else 97
"""Every so many lines are tried."""
LINES = 10_000
"""More than any of the calls executes."""
MISSES = 4 if ALL else 1
"""Calls in a row that end before their line, after which a sweep ends."""
BOUND_S = 10.0
"""Time limit of what needs milliseconds."""
FAST = ("memory", "unix")
"""Transports whose code is in this process, and whose calls are swept."""

pytestmark = [
    # The injected exception may be raised in a finalizer that the collector runs.
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning"),
    pytest.mark.timeout(3600 if ALL else 180),
]


class LoopInterrupted(Interrupted, KeyboardInterrupt):
    """An exception that an event loop raises, and does not log."""


class TimeoutException(Exception):
    """The exception of a signal handler that limits the time of a call."""


def interrupt_loop() -> None:
    raise LoopInterrupted


def sweep(check: Callable[[int], Injection]) -> None:
    """Call ``check`` with every line, or each STRIDE-th one, until the call ends before it."""
    # Not at the first such call: what a tick does depends on what has arrived.
    missed = 0
    for line in range(random.Random(STRIDE).randint(1, STRIDE), LINES, STRIDE):
        missed = missed + 1 if check(line).place is None else 0
        if missed == MISSES:
            return
    raise AssertionError(f"the call executes more than {LINES} lines")


class Ends:
    """A server and its client, which emits, requests and subscribes. The thread of the test drives both."""

    def __init__(self, location: Location) -> None:
        self.heard: list[int] = []
        self.published: list[int] = []
        self.back: list[int] = []
        self.emitted, self.numbers = 0, itertools.count(1)
        self.sent: dict[str, list[int]] = {"publish": [], "emit_to": []}
        """Numbers that calls which have returned have published and emitted."""
        self.futures: list[Future[Any]] = []
        self.server = Server(location)
        self.server.add_listener("n", self.heard.append)
        self.server.add_listener("echo", lambda value: value)
        self.server.add_listener("hello", lambda event: senders.append(event.sender), pass_event=True)
        senders: list[Any] = []
        self.client = Client(self.server.location, threaded=False)
        self.client.add_listener("back", self.back.append)
        subscribing = threading.Thread(target=lambda: self.client.subscribe("p", self.published.append))
        subscribing.start()
        tick_until(self.server, lambda: not subscribing.is_alive())
        self.client.emit("hello")
        self.settle(lambda: senders)
        self.sender = senders[0]

    def close(self) -> None:
        closed = threading.Thread(target=self.client.close)
        closed.start()
        tick_until(self.server, lambda: not closed.is_alive())
        self.server.close()

    def settle(self, fact: Callable[[], object], place: object = None) -> None:
        """Drive both ends until ``fact()`` holds."""
        end = time.monotonic() + BOUND_S
        while not fact():
            assert time.monotonic() < end, (place, self.server.stats(), self.client.stats())
            self.server.tick()
            self.client.tick(0.001)

    def load(self) -> None:
        """Send three events and a request, which are in the link then."""
        for _ in range(3):
            self.emit()
        self.submit()
        self.client.tick()

    def check(self, place: object) -> None:
        """Everything arrives once and in order, the request is answered, and another thread can use the server."""
        self.server.remove_listener("other")  # Else their number grows, and with it that of the lines of the next call.
        self.publish(), self.emit_to()
        self.settle(lambda: len(self.heard) >= self.emitted and all(each.done() for each in self.futures), place)
        assert self.heard == list(range(1, self.emitted + 1)), place
        for future in self.futures:
            # The interrupt is the reply, or has cost the connection, or ended the event loop of the listener.
            with suppress(RequestFailed, PeerLost):
                assert future.result(0) == 1, place
        self.futures.clear()
        assert within(self.server.stats), place
        assert within(lambda: self.server.publish("p", 0)) == 1, place
        for name, got in {"publish": self.published, "emit_to": self.back}.items():
            self.settle(lambda name=name, got=got: set(self.sent[name]) <= set(got), place)
            positive = [number for number in got if number]
            assert len(set(positive)) == len(positive), place
        self.settle(lambda: self.client.flush(0.0), place)

    def emit(self) -> None:
        self.emitted += 1
        self.client.emit("n", self.emitted)

    def submit(self) -> None:
        self.futures.append(self.client.submit("echo", 1, timeout=DEADLINE))

    def publish(self) -> None:
        self.server.publish("p", number := next(self.numbers), keep=True)
        self.sent["publish"].append(number)

    def emit_to(self, *, by_sender: bool = False) -> None:
        number = next(self.numbers)
        self.sender.emit("back", number) if by_sender else self.server.emit_to(self.sender, "back", number)
        self.sent["emit_to"].append(number)

    def serve(self) -> None:
        async def main() -> None:
            for seconds in (0.03, 0.5):  # The loop logs an interrupt of the first call, and goes on.
                asyncio.get_running_loop().call_later(seconds, self.server.stop)
            await self.server.serve()

        with suppress(CancelledError, asyncio.CancelledError):
            asyncio.run(main())

    def listeners(self) -> None:
        self.server.add_listener("other", print)
        self.server.once("other", print)
        self.server.on("other")(print)
        self.server.remove_listener("other")

    CALLS: ClassVar[dict[str, Callable[[Ends], object]]] = {
        "tick": lambda ends: ends.server.tick(),
        "tick(2)": lambda ends: ends.server.tick(2),
        "wait": lambda ends: ends.server.wait(0.01),
        "run": lambda ends: ends.server.run(0.01),
        "serve": serve,
        "serve, KeyboardInterrupt": serve,
        "publish": publish,
        "emit_to": emit_to,
        "emit_to of a sender": lambda ends: ends.emit_to(by_sender=True),
        "emit": lambda ends: ends.server.emit("local", 1),
        "add_listener once on remove_listener": listeners,
        "stats is_open location": lambda ends: (ends.server.stats(), ends.server.is_open, ends.server.location),
        "stop wake": lambda ends: (ends.server.stop(), ends.server.wake()),
    }
    NESTED: ClassVar[dict[str, Callable[[Ends], object]]] = {
        "publish": publish,
        "emit_to": emit_to,
        "emit here": lambda ends: ends.server.emit("local", 1),
        "emit": emit,
        "submit": submit,
        "request": lambda ends: ends.client.request("echo", 1, timeout=BOUND_S),
        "wait": lambda ends: ends.server.wait(0.001),
        "tick": lambda ends: ends.server.tick(),
    }
    of = Server


class Jobs:
    """A broker that the thread of the test drives, with a client, and a worker in another thread."""

    of: ClassVar[type] = Broker

    def __init__(self, location: Location) -> None:
        self.runs: list[tuple[int, int]] = []
        self.number = 0
        self.futures: list[tuple[int, Future[Any]]] = []
        self.broker = Broker(location, lease=1.0)
        self.worker = self.new_worker()
        self.worker.add_handler("note", self.note)
        self.worker.add_handler("stop", lambda: self.worker.stop())
        self.client = Client(self.broker.location)
        self.broker.tick()  # From now on this thread is known to tick it: a request of it raises WouldDeadlock.
        self.other = threading.Thread(target=self.run_other, daemon=True)
        self.other.start()

    def new_worker(self) -> Worker:
        return Worker(self.broker.location)

    def run_other(self) -> None:
        self.worker.run()

    def note(self, number: int) -> int:
        self.runs.append((number, current_job().attempt))
        return number

    def drive(self) -> None:
        if not self.broker.tick():
            self.broker.wait(0.02)

    def submit(self) -> None:
        self.number += 1
        self.futures.append((number := self.number, self.client.submit("note", number, timeout=DEADLINE)))

    def load(self) -> None:
        self.submit()
        self.broker.wait(0.05)

    def run(self) -> None:
        """Run until a job is done."""
        self.futures[-1][1].add_done_callback(lambda _: self.broker.stop())
        self.broker.run(BOUND_S)

    def check(self, place: object) -> None:
        """A job runs once, or again with the next attempt number, and its client gets a reply."""
        end = time.monotonic() + BOUND_S
        while not all(future.done() for _, future in self.futures):
            assert time.monotonic() < end, (place, self.broker.stats())
            self.drive()
        for number, future in self.futures:
            with suppress(RequestFailed, PeerLost):
                assert future.result(0) == number, place
        self.futures.clear()
        assert len(set(self.runs)) == len(self.runs), place

    def close(self) -> None:
        closed = threading.Thread(target=lambda: (self.client.close(), self.worker.close()))
        closed.start()
        while closed.is_alive() or self.other.is_alive():
            self.drive()
        self.broker.close()

    CALLS: ClassVar[dict[str, Callable[[Any], object]]] = {
        "tick": lambda jobs: jobs.broker.tick(),
        "wait": lambda jobs: jobs.broker.wait(0.01),
        "run": run,
        "stats busy dead_letters location": lambda jobs: (
            (jobs.broker.stats(), jobs.broker.busy, jobs.broker.dead_letters, jobs.broker.location)
        ),
        "stop": lambda jobs: jobs.broker.stop(),
    }
    NESTED: ClassVar[dict[str, Callable[[Any], object]]] = {
        "publish": lambda jobs: jobs.broker.server.publish("p", 1),
        "emit": lambda jobs: jobs.client.emit("unheard"),
        "submit": submit,
        "request": lambda jobs: jobs.client.request("note", 0, timeout=BOUND_S),
        "wait": lambda jobs: jobs.broker.wait(0.001),
        "tick": lambda jobs: jobs.broker.tick(),
    }


class WorkerJobs(Jobs):
    """The same, where the thread of the test runs the worker, and another one the broker."""

    of = Worker

    def run_other(self) -> None:
        self.broker.run()

    def drive(self) -> None:
        self.worker.run(0.05)

    def load(self) -> None:
        self.submit()
        self.client.submit("stop", timeout=DEADLINE)

    def close(self) -> None:
        self.client.close()
        self.worker.close()
        self.broker.stop()
        self.other.join(DEADLINE)
        self.broker.close()

    def add_handlers(self) -> None:
        for number in range(2):
            with suppress(ValueError):  # It has one already.
                self.worker.add_handler("other", print) if number else self.worker.on("another")(print)

    CALLS: ClassVar[dict[str, Callable[[Any], object]]] = {
        "run": lambda jobs: jobs.worker.run(BOUND_S),
        "stop": lambda jobs: jobs.worker.stop(),
        "add_handler on": add_handlers,
    }
    NESTED: ClassVar[dict[str, Callable[[Any], object]]] = {
        "publish": lambda jobs: jobs.broker.server.publish("p", 1),
        "emit": lambda jobs: jobs.client.emit("unheard"),
        "submit": Jobs.submit,
        "stop": lambda jobs: jobs.worker.stop(),
    }


class ThreadedJobs(WorkerJobs):
    """The same, with a worker that has two threads."""

    def new_worker(self) -> Worker:
        return Worker(self.broker.location, threads=2)


class Members:
    """Both members of a pair."""

    of: ClassVar[type] = Pair

    def __init__(self, location: Location) -> None:
        self.bound = Pair.bind(location)
        self.joined = Pair.connect(self.bound.location)
        self.number = 0
        self.sent: dict[Pair, list[int]] = {self.bound: [], self.joined: []}
        self.got: dict[Pair, list[int]] = {self.bound: [], self.joined: []}

    def signal(self, member: Pair) -> int:
        self.number = number = self.number + 1
        member.signal(number)
        self.sent[member].append(number)
        return number

    def wait(self, member: Pair) -> int:
        self.got[member].append(value := member.wait(BOUND_S))
        return value

    def load(self) -> None:
        self.signal(self.bound), self.signal(self.joined)

    def check(self, place: object) -> None:
        for member, other in ((self.bound, self.joined), (self.joined, self.bound)):
            last = within(lambda member=member: self.signal(member))
            while self.got[other][-1:] != [last]:
                within(lambda other=other: self.wait(other))
            got = self.got[other]
            assert set(self.sent[member]) <= set(got), place
            assert len(set(got)) == len(got), place

    def close(self) -> None:
        self.joined.close()
        self.bound.close()

    CALLS: ClassVar[dict[str, Callable[[Any], object]]] = {
        "signal": lambda members: members.signal(members.bound),
        "signal of the one that has joined": lambda members: members.signal(members.joined),
        "wait": lambda members: members.wait(members.bound),
        "wait of the one that has joined": lambda members: members.wait(members.joined),
        "location": lambda members: (members.bound.location, members.joined.location),
    }
    NESTED: ClassVar[dict[str, Callable[[Any], object]]] = {
        "signal": lambda members: members.signal(members.bound),
        "signal of the one that has joined": lambda members: members.signal(members.joined),
    }


TABLE = [(kind, name) for kind in (Ends, Jobs, WorkerJobs, ThreadedJobs, Members) for name in kind.CALLS]
IDS = [f"{kind.__name__}-{name}" for kind, name in TABLE]


def nested(kind: Any, names: Iterable[str], ends: Any) -> None:
    for name in names:
        with suppress(WouldDeadlock, ReentrantTick):
            kind.NESTED[name](ends)


@pytest.fixture
def swept(location: Location, transport_name: str) -> Location:
    if transport_name not in FAST:
        pytest.skip("the sweeps take the transports of the standard library")
    return location


@pytest.mark.parametrize(("kind", "name"), TABLE, ids=IDS)
def test_an_interrupt_at_any_line_of_a_call(swept: Location, kind: Any, name: str) -> None:
    with closing(kind(swept)) as ends:

        def check(line: int) -> Injection:
            ends.load()
            raising = interrupt_loop if name.endswith("KeyboardInterrupt") else interrupt_by_turns
            outcome = call_with(raising, line, lambda: kind.CALLS[name](ends))
            assert outcome.error is None, (outcome.place, outcome.error)
            ends.check(outcome.place)
            return outcome

        sweep(check)


@pytest.mark.parametrize(("kind", "name"), TABLE, ids=IDS)
def test_other_calls_at_any_line_of_a_call(swept: Location, kind: Any, name: str) -> None:
    """As a finalizer or a signal handler makes them."""
    each = [[one] for one in kind.NESTED] if os.environ.get("REMIT_INTERRUPTS") == "each" else []
    with closing(kind(swept)) as ends:
        for names in (*each, kind.NESTED):

            def check(line: int, names: Iterable[str] = names) -> Injection:
                ends.load()
                outcome = call_with(lambda: nested(kind, names, ends), line, lambda: kind.CALLS[name](ends))
                assert outcome.error is None, (outcome.place, outcome.error)
                ends.check(outcome.place)
                return outcome

            sweep(check)


def drain(broker: Broker) -> None:
    """Drain a broker with a job that no worker runs."""
    with Client(broker.location, threaded=False, linger=0.0) as client:
        client.submit("job", timeout=DEADLINE)
        client.tick()
        broker.drain(0.01)


def join(location: Location) -> Pair:
    """Join a pair. The slot may be taken until the lease of an interrupted call ends."""
    end = time.monotonic() + BOUND_S
    while True:
        try:
            return Pair.connect(location, lease=0.5)
        except PairBusy:
            assert time.monotonic() < end


def loop_server(location: Location) -> Server:
    async def main() -> None:
        async with AsyncServer(location):
            await asyncio.sleep(0.001)

    asyncio.run(main())
    return Server(location)


LIFETIMES: dict[str, tuple[Callable[[Location], Any], Callable[[Any], object]]] = {
    "Server close": (Server, lambda server: server.close()),
    "Server __exit__": (Server, lambda server: server.__exit__(None, None, None)),
    "Server close, with a key": (partial(Server, key="secret"), lambda server: server.close()),
    "Server close, with chaos": (lambda location: Server(f"chaos+{location}"), lambda server: server.close()),
    "AsyncServer async with": (loop_server, lambda _: None),
    "Broker close": (Broker, lambda broker: broker.close()),
    "Broker drain": (Broker, drain),
    "Worker close": (Worker, lambda worker: worker.close()),
    "Pair bind close": (Pair.bind, lambda pair: pair.close()),
    "Pair connect close": (join, lambda pair: pair.close()),
}


@pytest.mark.parametrize("name", LIFETIMES)
def test_an_interrupt_of_opening_or_closing_keeps_no_location(swept: Location, name: str) -> None:
    open_, leave = LIFETIMES[name]
    with ExitStack() as stack:
        if open_ is join:
            stack.enter_context(Pair.bind(swept, lease=0.5))

        def check(line: int) -> Injection:
            outcome = call_with(interrupt_by_turns, line, lambda: open_(swept))
            assert outcome.error is None, (outcome.place, outcome.error)
            opened = outcome.value or within(lambda: open_(swept))  # It was not interrupted in a finalizer.
            left = call_with(interrupt_by_turns, line, lambda: leave(opened))
            assert left.error is None, (left.place, left.error)
            within(opened.close)
            return left if outcome.place is None else outcome

        sweep(check)


def test_a_client_whose_connection_an_exception_keeps_connects_again(tmp_path: Path) -> None:
    swept = f"unix://{tmp_path}/s"
    kept: list[Exception | None] = []

    def throw() -> None:
        raise TimeoutException

    with Server(swept) as server:
        heard: list[int] = []
        server.add_listener("n", heard.append)
        for line in range(1, 150, 1 if ALL else 5):
            with Client(swept, threaded=False) as client:
                client.emit("n", line)
                client.tick()
                # The exception has the frames and local variables of the call, and so the socket of the client.
                kept.append(call_with(throw, line, server.tick).error)
                end = time.monotonic() + BOUND_S
                while line not in heard:
                    assert time.monotonic() < end, line
                    server.tick()
                    client.tick(0.001)
                closed = threading.Thread(target=client.close)
                closed.start()
                tick_until(server, lambda closed=closed: not closed.is_alive())
    assert heard == sorted(set(heard))
    assert len([each for each in kept if each is not None]) > 10
    kept.clear()
    gc.collect()  # The warnings of unclosed descriptors are ignored here.


KINDS = (Server, Broker, Worker, Pair)


def test_every_public_call_is_swept() -> None:
    swept = {(kind.of, word) for kind, name in TABLE for word in name.split()}
    swept |= {(kind, word) for kind in KINDS for name in LIFETIMES if kind.__name__ in name for word in name.split()}
    public = {(kind, name) for kind in KINDS for name in dir(kind) if not name.startswith("_")}
    assert not public - swept


def test_signals_at_random_moments_lose_nothing(location: Location) -> None:
    def raise_interrupted(*_: object) -> None:
        raise Interrupted

    with closing(Ends(location)) as both:
        before = signal.signal(signal.SIGALRM, raise_interrupted)
        interrupted = 0
        try:
            for number in range(120 if ALL else 25):
                both.load()
                try:  # The outer one, because the signal may come anywhere in the inner one, also at its end.
                    try:
                        signal.setitimer(signal.ITIMER_REAL, 0.00002 + 0.000017 * number)
                        for _ in range(100):
                            both.server.tick()
                            both.publish()
                        time.sleep(0.01)
                    finally:
                        signal.setitimer(signal.ITIMER_REAL, 0)
                except Interrupted:
                    interrupted += 1
                both.check(number)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, before)
        assert interrupted > 5
