"""First use and last use of a client from anywhere: threads, signal handlers, exit hooks, finalizers, children."""

from __future__ import annotations

import asyncio
import gc
import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from internals import client_io, sessions_of
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import AsyncClient, Client, Location, Server
from remit.errors import LinkClosed, RequestTimeout, Undelivered
from remit.plugins import find_transport

# Python drops what a signal handler raises within a finalizer; and the collector closes a socket without an owner.
pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::pytest.PytestUnraisableExceptionWarning")

CYCLES = 1000 if "REMIT_EVERY_LINE" in os.environ else 60

LAST_USES = {
    "module level": "client.emit('event', 1)",
    "atexit": "import atexit; atexit.register(lambda: client.emit('event', 1))",
    "atexit after the client's own hook": "client.emit('event', 1)\nearlier.append(lambda: client.emit('event', 2))",
    "first use after the client's own hook": "earlier.append(lambda: client.emit('event', 1))",
    "request after the client's own hook": "earlier.append(lambda: client.request('event', 1))",
    "finalizer": (
        "class Last:\n    def __del__(self, client=client): client.emit('event', 1)\nlast = Last()\nlast.self = last"
    ),
    "weakref.finalize": "import weakref\nweakref.finalize(client.on, client.emit, 'event', 1)",
    "fork": "import os\nif not os.fork():\n    client.emit('event', 1)\nelse:\n    os.wait()",
    "used before a fork": (
        "import os\nclient.emit('event', 1)\nif not os.fork():\n    client.emit('event', 2)\nelse:\n    os.wait()"
    ),
    "multiprocessing": (
        "import multiprocessing\nchild = multiprocessing.get_context('fork').Process(target=client.emit, "
        "args=('event', 1))\nchild.start(); child.join()"
    ),
    "finalizer of multiprocessing": (
        "import multiprocessing, multiprocessing.util\n"
        "def child(): multiprocessing.util.Finalize(None, client.emit, ('event', 1), exitpriority=1)\n"
        "process = multiprocessing.get_context('fork').Process(target=child)\nprocess.start(); process.join()"
    ),
    "unpickled": "import pickle\npickle.loads(pickle.dumps(client)).emit('event', 1)",
    "thread": "import threading\nthreading.Thread(target=lambda: client.emit('event', 1)).start()",
    "daemon thread": (
        "import threading\nthread = threading.Thread(target=lambda: client.emit('event', 1), daemon=True)\n"
        "thread.start(); thread.join()"
    ),
}
PROGRAM = """
import atexit, sys
earlier = []
atexit.register(lambda: [each() for each in earlier])  # Before the import: it runs after the hook of the client.
from remit import Client
client = Client(sys.argv[1], linger=10)
"""


@pytest.mark.parametrize("use", LAST_USES)
def test_what_is_emitted_last_arrives(crossing_location: Location, use: str) -> None:
    if use == "finalizer" and not find_transport(crossing_location.scheme).capabilities.attests_peers:
        pytest.skip("the library of the backend has ended when the interpreter runs the last finalizers")
    got: Counter[int] = Counter()
    expected = [1, 2] if "event', 2" in LAST_USES[use] else [1]
    with Server(crossing_location) as server, ticked(server):
        server.add_listener("event", lambda number: got.update([number]))
        # From 3.12 on a fork beside other threads is warned of. A client that the exit hook closes is not.
        warned = ("-W", "ignore", "-W", "always:unclosed client:ResourceWarning")
        program = [sys.executable, *warned, "-c", PROGRAM + LAST_USES[use], server.location.url]
        ended = subprocess.run(program, capture_output=True, text=True, timeout=DEADLINE)
        if use == "used before a fork" and not find_transport(crossing_location.scheme).capabilities.forks:
            expected = [1]
            assert "was used before this process was forked" in ended.stderr
        else:
            assert (ended.returncode, ended.stderr) == (0, "")
        wait_until(lambda: got.total() >= len(expected))
    assert got == Counter(expected)


@pytest.mark.parametrize("use", ["atexit", "first use after the client's own hook", "finalizer", "module level"])
def test_what_is_emitted_last_and_reaches_no_server_is_named(crossing_location: Location, use: str) -> None:
    if use == "finalizer" and not find_transport(crossing_location.scheme).capabilities.attests_peers:
        pytest.skip("the library of the backend has ended when the interpreter runs the last finalizers")
    location = crossing_location if crossing_location.port != 0 else crossing_location.replace(port=9)
    program = (PROGRAM + LAST_USES[use]).replace("linger=10", "linger=0.1").replace("import atexit, sys", SHORT_EXIT)
    ended = subprocess.run(
        [sys.executable, "-c", program, location.url], capture_output=True, text=True, timeout=DEADLINE
    )
    assert "1 never sent" in ended.stderr


SHORT_EXIT = "import atexit, sys, remit._io.exit_flush\nremit._io.exit_flush.EXIT_LINGER_S = 0.2\n"


def io_threads(before: set[threading.Thread]) -> int:
    return sum(thread.name == "remit-io" for thread in set(threading.enumerate()) - before)


def test_many_threads_open_one_connection(location: Location) -> None:
    many = 64
    with Server(location) as server, ticked(server), ThreadPoolExecutor(many) as pool:
        server.add_listener("echo", lambda number: number)
        before = set(threading.enumerate())
        for copied in (False, True):
            client = Client(server.location)
            if copied:
                client = pickle.loads(pickle.dumps(client))
            together = threading.Barrier(many)

            def use(number: int, client: Client = client, together: threading.Barrier = together) -> Any:
                together.wait(DEADLINE)
                return client.request("echo", number, timeout=DEADLINE)

            assert list(pool.map(use, range(many))) == list(range(many))
            assert client.stats()["connections"] == 1
            wait_until(lambda: io_threads(before))
            assert io_threads(before) == 1
            client.close()
            assert io_threads(before) == 0


class Owner:
    """Garbage with a client, which the finalizer uses."""

    def __init__(self, client: Client) -> None:
        self.client, self.me = client, self
        client.emit("event", 1)

    def __del__(self) -> None:
        self.client.emit("event", 2)


def unclosed(location: Location | str, drop: Callable[[], object]) -> list[warnings.WarningMessage]:
    """Return the warnings of a dropped client, which may be collected in any thread."""
    start = f"unclosed client to {location}:"
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        drop()
        wait_until(lambda: gc.collect() >= 0 and any(str(each.message).startswith(start) for each in caught))
    return [each for each in caught if str(each.message).startswith(start)]


def test_a_client_that_is_dropped_unclosed_is_reported_and_its_events_arrive(location: Location) -> None:
    async def emit() -> None:
        await AsyncClient(server.location).emit("event", 3)

    got: list[int] = []
    with Server(location) as server, ticked(server):
        server.add_listener("event", got.append)
        gc.collect()
        for drop in (lambda: Owner(Client(server.location)), lambda: asyncio.run(emit())):
            [report] = unclosed(server.location, drop)
            assert report.category is ResourceWarning
            client: Any = report.source
            wait_until(lambda: got[-1:] in ([2], [3]))
            client.close()
            del client, report
    assert got == [1, 2, 3]


def test_a_dropped_client_without_a_thread_is_reported_with_its_events() -> None:
    url = "memory://nothing"
    [report] = unclosed(url, lambda: Client(url, threaded=False).emit("event", 1))
    assert "1 event undelivered" in str(report.message)


def test_an_emit_that_races_close_is_refused_or_named(location: Location) -> None:
    """Without a server, each event whose emit has returned is named by close(), from however many threads it came."""
    location = location.replace(port=9) if location.port == 0 else location
    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(2) as pool:
            for _ in range(10):
                client = Client(location)
                client.emit("event", 0)
                emitted: list[int] = [0]

                def emit(client: Client = client, emitted: list[int] = emitted) -> None:
                    try:
                        for number in range(1, 10_000):
                            client.emit("event", number)
                            emitted.append(number)
                    except LinkClosed:
                        return

                racing = pool.submit(emit)
                wait_until(lambda emitted=emitted: len(emitted) > 20)  # type: ignore[misc]
                with pytest.raises(Undelivered) as lost:
                    client.close(0.0)
                racing.result(DEADLINE)
                named = [event.args[0] for event in lost.value.events]
                # The last emit may be refused when its event is queued already.
                assert named in (emitted, [*emitted, len(emitted)])
    finally:
        sys.setswitchinterval(interval)


MOST_CALLS = 200
"""Calls after which no alarm is expected any more: Python drops an exception that is raised within a finalizer."""


class Alarm(BaseException):
    """What the time limit of a job runner raises."""


@pytest.fixture
def alarm() -> Iterator[None]:
    def expire(*_: object) -> None:
        raise Alarm

    former = signal.signal(signal.SIGALRM, expire)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, former)


@pytest.mark.usefixtures("alarm")
def test_real_signals_at_random_moments_leave_a_client_usable(location: Location) -> None:
    chance = random.Random(7)
    got: Counter[int] = Counter()
    interrupted = number = 0
    emitted = []
    with Server(location) as server, ticked(server), Client(server.location) as client:
        server.add_listener("event", lambda number: got.update([number]))
        server.add_listener("ping", lambda: "pong")
        client.request("ping", timeout=DEADLINE)
        for _ in range(300 if CYCLES >= 1000 else 60):
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(2e-5, 1e-3))
                for _ in range(MOST_CALLS):
                    number += 1
                    client.emit("event", number)
                    emitted.append(number)
                    client.request("ping", timeout=DEADLINE)
            except Alarm:
                interrupted += 1
            assert client.request("ping", timeout=5.0) == "pong"
        assert client.flush(DEADLINE)
        assert {each: got[each] for each in emitted} == dict.fromkeys(emitted, 1)
        assert max(got.values()) == 1


@pytest.mark.usefixtures("alarm")
def test_an_interrupted_request_is_withdrawn(location: Location) -> None:
    ran = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("work", lambda number: ran.append(number))
        with ticked(server):
            client.request("work", 0, timeout=DEADLINE)
        signal.setitimer(signal.ITIMER_REAL, 0.1)
        with pytest.raises(Alarm):
            client.request("work", 1, timeout=DEADLINE)
        client.emit("done")
        # The cancellation arrives before this event.
        wait_until(lambda: sessions_of(server)[0].inbox.received == 3)
        with ticked(server):
            assert client.flush(DEADLINE)
    assert ran == [0]


def test_an_unexpected_error_on_the_io_thread_costs_one_connection(
    location: Location, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with Server(location) as server, ticked(server), Client(server.location) as client:
        server.add_listener("ping", lambda: "pong")
        client.request("ping", timeout=DEADLINE)
        io = client_io(client)
        monkeypatch.setattr(io.link_pump.link, "receive", {}.popitem)
        io.link_lock.interrupt()
        wait_until(lambda: "KeyError" in client.stats()["why"])
        assert "goes on after an unexpected error" in caplog.text
        client.emit("event")
        assert client.flush(DEADLINE)
        assert client.request("ping", timeout=DEADLINE) == "pong"


def test_a_request_has_its_own_deadline_while_a_callback_blocks_the_link(location: Location) -> None:
    entered, leave = threading.Event(), threading.Event()
    with Server(location) as server, ticked(server), Client(server.location) as client:
        server.add_listener("ping", lambda: "pong")

        def block(_: object) -> None:
            entered.set()
            leave.wait(DEADLINE)

        client.request("ping", timeout=DEADLINE)
        client.submit("ping", timeout=DEADLINE).add_done_callback(block)
        assert entered.wait(DEADLINE)
        with pytest.raises(RequestTimeout):
            client.request("ping", timeout=0.1)
        leave.set()
        assert client.request("ping", timeout=DEADLINE) == "pong"


def footprint() -> tuple[int, int]:
    """Return the numbers of threads and of descriptors."""
    gc.collect()
    return threading.active_count(), len(list(Path("/proc/self/fd").iterdir()))


def resident_bytes() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


SPARE_DESCRIPTORS = 3
"""Descriptors that may stay: nng 1.11 leaks one if a socket is closed at the moment in which it connects."""
SESSION_OBJECTS = 40
"""Most objects that a server keeps for one session without events."""
SPARE_BYTES = 8 << 20
"""Resident memory that the allocator may keep for the stacks and arenas of threads."""


@pytest.mark.usefixtures("alarm")
def test_cycles_of_connecting_interrupts_and_closing_leave_nothing(
    location: Location, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "unraisablehook", lambda _: None)  # That of pytest keeps the frames of the exception.
    chance = random.Random(11)
    with Server(location) as server, ticked(server):
        server.add_listener("ping", lambda: "pong")

        def cycle() -> None:
            client = Client(server.location, linger=5.0)
            try:
                signal.setitimer(signal.ITIMER_REAL, chance.uniform(1e-4, 3e-3))
                for _ in range(MOST_CALLS):
                    client.emit("event")
                    client.request("ping", timeout=DEADLINE)
            except Alarm:
                pass
            client.close()

        for _ in range(20):  # They also import what is imported late.
            cycle()
        threads, descriptors = footprint()
        objects, resident = len(gc.get_objects()), resident_bytes()
        for _ in range(CYCLES):
            cycle()
        wait_until(lambda: footprint()[0] <= threads)
        # Within seconds: a server over nng keeps a channel for some time that an interrupted client has not claimed.
        wait_until(lambda: footprint()[1] <= descriptors + SPARE_DESCRIPTORS)
        # The server keeps the sessions of a few clients that were interrupted while they closed.
        bound = objects + CYCLES // 2 + len(sessions_of(server)) * SESSION_OBJECTS
        wait_until(lambda: gc.collect() >= 0 and len(gc.get_objects()) < bound)
        assert resident_bytes() < resident + SPARE_BYTES
