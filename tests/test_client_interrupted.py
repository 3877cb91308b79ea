"""Interrupts and re-entry in every line of a client's calls: what follows must work, and no event may be lost."""

from __future__ import annotations

import contextlib
import datetime
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from functools import partial
from typing import Any
from unittest import mock

import pytest
from descriptors import open_descriptors
from injection import Injection, Interrupted, alarm, call_with, interrupt, interrupt_by_turns, within
from ticking import ticked
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Location, Server
from remit.errors import LinkClosed, RemitError, Undelivered, WouldDeadlock
from remit.event import Event
from remit.transport import Arrival
from remit.transports.memory import MemoryLink
from remit.transports.stream_link import StreamLink

# A socket that an interrupt keeps from its owner is closed by the collector.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

WHOLE = "REMIT_EVERY_LINE" in os.environ
"""Inject at every line; by default at a sample, because all of them take minutes."""
STRIDE = 1 if WHOLE else 23
MOST_LINES = 5000
BOUND_S = 5.0
"""Time limit of a call that needs milliseconds."""
SWEPT = ("memory", "unix")

Call = Callable[[Client], object]


def request(client: Client) -> object:
    return client.request("ping", timeout=BOUND_S)


def submit_and_wait(client: Client) -> object:
    future = client.submit("ping", timeout=BOUND_S)
    for _ in range(20):  # A client with a thread returns immediately: no more, because each call executes lines.
        if not future.done():
            client.tick(BOUND_S / 20)
    return future.result(BOUND_S)


def submit_and_cancel(client: Client) -> object:
    return client.submit("ping", timeout=BOUND_S).cancel()


def subscribe_and_unsubscribe(client: Client) -> None:
    client.subscribe("news", lambda *_: None, timeout=BOUND_S).close()


def add_and_remove_listeners(client: Client) -> None:
    client.add_listener("one", print)
    client.once("one", print)
    client.on("two")(print)
    client.remove_listener("one")
    client.remove_listener("two", print)


def emit_paced(client: Client) -> None:
    """Emit at a pace at which the calling thread itself sends."""
    client.emit("other")
    ends = time.monotonic() + 0.0005
    while time.monotonic() < ends:
        pass
    client.emit("other")


CALLS: dict[str, Call] = {
    "emit": lambda client: client.emit("other"),
    "emit_paced": emit_paced,
    "emit of an Event": lambda client: client.emit(Event("other")),
    "request": request,
    "submit": submit_and_wait,
    "cancel": submit_and_cancel,
    "flush": lambda client: client.flush(BOUND_S),
    "subscribe": subscribe_and_unsubscribe,
    "listeners": add_and_remove_listeners,
    "start": lambda client: client.start(),
    "tick": lambda client: client.tick(0.01),
    "stats": lambda client: client.stats(),
}


def say(emit: Callable[..., None], number: int) -> None:
    """Emit one event for each kind of listener."""
    for name in ("plain", "typed", "several", "once"):
        emit(name, number)
    emit("dated", number, datetime.date(2020, 2, 3))


class Desk:
    """A server in a thread of its own that counts what arrives."""

    def __init__(self, location: Location) -> None:
        self.got: Counter[int] = Counter()
        self.server = Server(location)
        self.server.add_listener("ping", lambda: "pong")
        self.server.add_listener("event", self._count)
        self.server.add_listener("say", self._say, pass_event=True)
        self._thread = threading.Thread(target=self.server.run, daemon=True)
        self._thread.start()

    def _count(self, number: int) -> None:
        self.got[number] += 1

    def _say(self, event: Event) -> None:
        say(event.sender.emit, *event.args)
        self.server.publish("news", *event.args)

    def close(self) -> None:
        self.server.close()
        self._thread.join(DEADLINE)


@pytest.fixture(params=SWEPT)
def desk(request: pytest.FixtureRequest, short_path: Any) -> Iterator[Desk]:
    name = f"{os.getpid()}-{time.monotonic_ns()}"
    desk = Desk(Location(f"memory://{name}" if request.param == "memory" else f"unix://{short_path / name}"))
    yield desk
    desk.close()


def named_by(error: BaseException | None) -> list[Any]:
    """Return the arguments of the events that an exception, or what it replaced, names as undelivered."""
    while error is not None:
        if isinstance(error, Undelivered):
            return [event.args[0] for event in error.events if event.name == "event"]
        error = error.__context__
    return []


def check_usable(client: Client, desk: Desk, numbers: list[int], place: str | None) -> None:
    """Check that two threads can use the client, and that each event arrives once."""
    assert within(lambda: client.request("ping", timeout=BOUND_S)) == "pong", place
    client.emit("event", number := max(numbers, default=0) + 1)
    numbers.append(number)
    assert client.request("ping", timeout=BOUND_S) == "pong", place
    assert client.flush(BOUND_S), place
    assert within(lambda: client.flush(BOUND_S)), place
    assert {each: desk.got[each] for each in numbers} == dict.fromkeys(numbers, 1), place


def sweep(step: Callable[[int], Injection], stride: int = STRIDE) -> int:
    """Inject at every ``stride``-th line until the call ends before it. Return the number of injections."""
    for count, line in enumerate(range(1, MOST_LINES, stride)):
        if step(line).place is None:
            return count
    raise AssertionError(f"the call has more than {MOST_LINES} lines")


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("opened", [True, False], ids=["open", "first-use"])
def test_a_call_may_be_interrupted_at_any_line(desk: Desk, name: str, threaded: bool, opened: bool) -> None:
    numbers: list[int] = []

    def step(line: int) -> Injection:
        client = Client(desk.server.location, threaded=threaded)
        if opened:
            client.emit("event", number := max(numbers, default=0) + 1)
            numbers.append(number)
            client.request("ping", timeout=BOUND_S)
        outcome = call_with(interrupt_by_turns, line, partial(CALLS[name], client))
        assert outcome.error is None, (outcome.place, outcome.error)
        check_usable(client, desk, numbers, outcome.place)
        client.close()
        return outcome

    threads = threading.active_count()
    assert sweep(step)
    wait_until(lambda: threading.active_count() <= threads)


def test_creating_a_client_may_be_interrupted_at_any_line(desk: Desk) -> None:
    location = str(desk.server.location)

    def step(line: int) -> Injection:
        outcome = call_with(interrupt_by_turns, line, partial(Client, location))
        assert within(lambda: Client(location).location) == desk.server.location, outcome.place
        return outcome

    assert sweep(step)


WRAPPED: dict[str, tuple[str, dict[str, Any]]] = {
    "keyed": ("", {"key": b"k" * 32}),
    "chaos": ("chaos+", {}),
}
"""Prefix of the scheme, and options of both ends, for links around other links."""


@pytest.fixture(params=[*WRAPPED, "plain"])
def open_client(request: pytest.FixtureRequest, desk: Desk) -> Iterator[Callable[[], Client]]:
    """A function that opens a client of a server whose links are wrapped."""
    prefix, options = WRAPPED.get(request.param, ("", {}))
    with Server(f"{prefix}{desk.server.location}-2", **options) as server, ticked(server):
        server.add_listener("ping", lambda: "pong")
        yield lambda: Client(server.location, linger=BOUND_S, **options)


@pytest.mark.parametrize("open_client", WRAPPED, indirect=True)
def test_the_first_use_of_a_wrapped_link_may_be_interrupted_at_any_line(open_client: Callable[[], Client]) -> None:
    def step(line: int) -> Injection:
        clients: list[Client] = []

        def use() -> None:
            clients.append(open_client())
            request(clients[0])

        outcome = call_with(interrupt_by_turns, line, use)
        assert outcome.error is None, (outcome.place, outcome.error)
        for client in clients:
            assert client.request("ping", timeout=BOUND_S) == "pong", outcome.place
            client.close()
        return outcome

    descriptors = open_descriptors()
    assert sweep(step)
    wait_until(lambda: open_descriptors() <= descriptors)


def test_an_arrival_that_an_interrupt_has_lost_is_made_up_for(open_client: Callable[[], Client]) -> None:
    """The link has returned it, such as the Up of the server, and nothing has used it."""
    lost = 0
    for number in range(1, MOST_LINES):
        arrivals = iter(range(1, MOST_LINES))

        def lose(received: Arrival | None) -> Arrival | None:
            here = received is not None and threading.current_thread() is threading.main_thread()
            if here and next(arrivals) == number:  # noqa: B023
                interrupt()
            return received

        with open_client() as client:
            with contextlib.ExitStack() as patches:
                for link in (MemoryLink, StreamLink):
                    receive = link.receive
                    patches.enter_context(
                        mock.patch.object(link, "receive", lambda self, receive=receive: lose(receive(self)))
                    )
                with contextlib.suppress(Interrupted):
                    client.request("ping", timeout=BOUND_S)
                    break
            assert client.request("ping", timeout=BOUND_S) == "pong", number
            lost += 1
    assert lost


AWAY = {"memory": "memory://away", "unix": "unix:///nowhere/at/all.sock"}


@pytest.mark.parametrize("scheme", SWEPT)
@pytest.mark.parametrize(
    "leave", [Client.close, lambda client: client.__exit__(None, None, None)], ids=["close", "exit"]
)
def test_close_may_be_interrupted_at_any_line_and_still_reports(scheme: str, leave: Call) -> None:
    """Whatever close() was interrupted in, it or the next one names the events that no server has received."""

    def step(line: int) -> Injection:
        client = Client(AWAY[scheme], linger=0.01)
        for number in range(3):
            client.emit("event", number)
        caught: list[BaseException] = []

        def end() -> None:
            try:
                leave(client)
            except BaseException as error:
                caught.append(error)
                raise

        outcome = call_with(interrupt_by_turns, line, end)
        named = named_by(caught[0] if caught else None)
        try:
            client.close()
        except Undelivered as error:
            named = named or named_by(error)
        assert named == [0, 1, 2], outcome.place
        with pytest.raises(LinkClosed):
            client.emit("event", 3)
        return outcome

    threads = threading.active_count()
    assert sweep(step)
    wait_until(lambda: threading.active_count() <= threads)


def nested(client: Client, server: Server, numbers: list[int], futures: list[Future[Any]], errors: list[str]) -> None:
    """Make the calls that a signal handler or a finalizer may make."""
    numbers.append(number := max(numbers, default=0) + 1)
    client.emit("event", number)
    futures.append(client.submit("ping", timeout=BOUND_S))
    server.publish("news", number)
    try:
        if client.request("ping", timeout=BOUND_S) != "pong":
            errors.append("another answer")
    except WouldDeadlock:
        pass
    except RemitError as error:
        errors.append(repr(error))


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
@pytest.mark.parametrize("name", CALLS)
@pytest.mark.parametrize("opened", [True, False], ids=["open", "first-use"])
def test_a_signal_handler_may_use_the_client_at_any_line(desk: Desk, name: str, threaded: bool, opened: bool) -> None:
    numbers: list[int] = []

    def step(line: int) -> Injection:
        client = Client(desk.server.location, threaded=threaded)
        futures: list[Future[Any]] = []
        errors: list[str] = []
        if opened:
            client.request("ping", timeout=BOUND_S)
        outcome = call_with(
            lambda: nested(client, desk.server, numbers, futures, errors), line, partial(CALLS[name], client)
        )
        assert outcome.error is None, (outcome.place, outcome.error)
        assert not errors, (outcome.place, errors)
        for future in futures:
            wait_until(future.done, BOUND_S, tick=client)
            assert future.result() == "pong", outcome.place
        check_usable(client, desk, numbers, outcome.place)
        client.close()
        return outcome

    threads = threading.active_count()
    assert sweep(step)
    wait_until(lambda: threading.active_count() <= threads)


def test_an_event_of_a_client_that_a_signal_handler_closes_arrives_or_is_reported(desk: Desk) -> None:
    numbers = itertools.count()

    def step(line: int) -> Injection:
        client, number = Client(desk.server.location), next(numbers)
        client.request("ping", timeout=BOUND_S)
        outcome = call_with(lambda: client.close(BOUND_S), line, lambda: client.emit("event", number))
        client.close(BOUND_S)
        arrived, named = desk.got[number] == 1, number in named_by(outcome.error)
        assert arrived or named or isinstance(outcome.error, LinkClosed), (outcome.place, outcome.error)
        return outcome

    assert sweep(step, 1)


def test_events_dropped_at_any_line_of_a_send_make_no_frame_too_large(short_path: Any) -> None:
    """A frame is measured before its events leave the queue; then others take the place of those that are dropped."""
    desk = Desk(Location(f"unix://{short_path / 's'}?max_frame=65536"))
    got: list[int] = []
    desk.server.add_listener("data", lambda number, _: got.append(number))

    def step(line: int) -> Injection:
        got.clear()
        with Client(desk.server.location, threaded=False, when_full="drop_oldest", queue=40) as client:
            client.request("ping", timeout=BOUND_S)
            for number in range(41):  # The first one is sent at once.
                client.emit("data", number, bytes(60_000 if number == 39 else 1000))
            outcome = call_with(lambda: client.emit("data", 41, b""), line, client.tick)
            assert outcome.error is None, (outcome.place, outcome.error)
            assert client.flush(BOUND_S), outcome.place
        assert got[-3:] in ([39, 40, 41], [38, 39, 40]), outcome.place
        return outcome

    assert sweep(step, 1)
    desk.close()


@pytest.mark.parametrize("kind", ["client", "server"])
def test_an_interrupt_of_a_dispatch_at_any_line_skips_and_repeats_no_listener(desk: Desk, kind: str) -> None:
    calls: Counter[tuple[str, int]] = Counter()

    def note(which: str) -> Callable[..., None]:
        return lambda number, *_: calls.update([(which, number)])

    def typed(number: int) -> None:
        note("typed")(number)

    def dated(number: float, day: datetime.date) -> None:
        assert type(day) is datetime.date
        note("dated")(number)

    server = Server(Location(f"{desk.server.location}-2"))
    client = Client((server if kind == "server" else desk.server).location, threaded=kind == "server")
    end = server if kind == "server" else client
    until = partial(tick_until, server) if kind == "server" else partial(wait_until, tick=client)
    for name, listener in (("plain", note("plain")), ("typed", typed), ("several", note("first")), ("dated", dated)):
        end.add_listener(name, listener)
    end.add_listener("several", lambda event: note("event")(*event.args), pass_event=True)
    end.add_listener("sever*", typed)
    if kind == "client":
        client.subscribe("news", note("news"), timeout=BOUND_S)
    once = dict.fromkeys(("plain", "first", "event", "dated", "several once", "once"), 1) | {"typed": 2}
    expected = once | ({"news": 1} if kind == "client" else {})

    def step(line: int) -> Injection:
        # An `Exception` within a conversion is an error of the listener: it may be that of a validator of the user.
        action, called = (interrupt, expected) if line % 2 else (alarm, {**expected, "dated": None})
        end.once("several", note("several once"))
        end.once("once", note("once"))
        say(client.emit, line) if kind == "server" else client.emit("say", line)

        def heard(number: int) -> dict[str, int | None]:
            got = {which: count for (which, each), count in calls.items() if each == number}
            return got | {which: None for which, count in called.items() if count is None}

        def receive() -> None:
            until(lambda: heard(line).keys() == expected.keys(), BOUND_S)

        outcome = call_with(action, line, receive)
        assert outcome.error is None, (outcome.place, outcome.error)
        say(client.emit, -line) if kind == "server" else client.emit("say", -line)
        until(lambda: calls["dated", -line] and (kind == "server" or calls["news", -line]), BOUND_S)
        assert heard(line) == called, outcome.place
        return outcome

    assert sweep(step, STRIDE * 2 - 1)
    server.close()
    client.close(0.0)
