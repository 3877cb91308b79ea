"""Processes that emit and end at once: everything arrives, once, in order, over each transport."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest
from waiting import tick_until

from remit import Client, Location, Server
from remit.codec import JSON
from remit.plugins import find_transport

CHILDREN = 10
EVENTS = 1000
LATE = 2.0
"""Seconds for which the children are there before their server."""

CHILD = f"""
import sys
from remit import Client
client = Client(sys.argv[1])
for number in range({EVENTS}):
    client.emit("count", int(sys.argv[2]), number)
"""

IN_MULTIPROCESSING = f"""
import multiprocessing, sys
from remit import Client

def child(client, who):
    for number in range({EVENTS}):
        client.emit("count", who, number)

if __name__ == "__main__":
    client = Client(sys.argv[1])
    client.emit("parent")
    context = multiprocessing.get_context(sys.argv[2])
    children = [context.Process(target=child, args=(client, who)) for who in range(3)]
    for process in children: process.start()
    for process in children: process.join()
    sys.exit(max(process.exitcode for process in children))
"""


def start(location: Location, who: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, location.url, str(who)], stderr=subprocess.PIPE, text=True)


def finish(children: list[subprocess.Popen[str]]) -> None:
    for child in children:
        _, errors = child.communicate(timeout=30)
        # A client that has waited for its server for more than a second reports that.
        rest = [line for line in errors.splitlines() if not line.startswith("no connection to ")]
        assert (child.returncode, rest) == (0, [])


def reachable(location: Location) -> Location:
    """Give a location on port 0 the port of a server that was just there."""
    with Server(location) as server:
        return server.location


@pytest.mark.parametrize("late", [False, True], ids=["server-first", "server-late"])
def test_children_that_end_after_their_last_emit_lose_nothing(crossing_location: Location, late: bool) -> None:
    location = reachable(crossing_location)
    heard: dict[int, list[int]] = {}
    children: list[subprocess.Popen[str]] = []
    if late:
        children = [start(location, who) for who in range(CHILDREN)]
        time.sleep(LATE)
    with Server(location) as server:
        server.add_listener("count", lambda who, number: heard.setdefault(who, []).append(number))
        if not late:
            children = [start(location, who) for who in range(CHILDREN)]
        tick_until(
            server,
            lambda: (
                all(child.poll() is not None for child in children)
                and sum(map(len, heard.values())) >= CHILDREN * EVENTS
            ),
            40,
        )
        server.tick()
    finish(children)
    assert heard == {who: list(range(EVENTS)) for who in range(CHILDREN)}


@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_a_client_may_be_taken_into_children(crossing_location: Location, method: str, tmp_path: Path) -> None:
    if not forks(crossing_location):
        method = "spawn"  # this library aborts in a forked child, which the docs say
    script = tmp_path / "parent.py"
    script.write_text(IN_MULTIPROCESSING)
    location = reachable(crossing_location)
    heard: dict[int, list[int]] = {}
    with Server(location) as server:
        server.add_listener("count", lambda who, number: heard.setdefault(who, []).append(number))
        command = [sys.executable, str(script), location.url, method]
        child = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        tick_until(server, lambda: child.poll() is not None, 40)
        tick_until(server, lambda: sum(map(len, heard.values())) >= 3 * EVENTS)
    finish([child])
    assert heard == {who: list(range(EVENTS)) for who in range(3)}


IN_FORK = """
import os, sys
from remit import Client, Server

with Server(sys.argv[1]) as server:
    server.add_listener("add", lambda a, b: a + b)
    server.tick()
    child = os.fork()
    if child == 0:
        with Client(server.location) as client:
            assert client.request("add", 1, 2, timeout=20) == 3
            client.emit("add", 1, 2)
            assert client.flush(20)
        os._exit(0)
    ended = 0
    while not ended:
        server.tick()
        server.wait(0.01)
        ended, status = os.waitpid(child, os.WNOHANG)
    sys.exit(os.waitstatus_to_exitcode(status))
"""


def test_a_forked_child_may_ask_the_server_that_its_parents_thread_ticks(crossing_location: Location) -> None:
    """It runs in a thread of the same ident, but ticks nothing."""
    if not forks(crossing_location):
        pytest.skip("its library aborts in a forked child")
    parent = [sys.executable, "-W", "ignore", "-c", IN_FORK, crossing_location.url]
    ended = subprocess.run(parent, stderr=subprocess.PIPE, text=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, "")


def forks(location: Location) -> bool:
    return find_transport(location.scheme).capabilities.forks


def test_a_client_that_nobody_answers_ends_in_time_and_says_what_it_lost(crossing_location: Location) -> None:
    location = reachable(crossing_location)
    code = "import sys; from remit import Client; c = Client(sys.argv[1], linger=0.2); c.emit('lost'); c.emit('too')"
    child = subprocess.run([sys.executable, "-c", code, location.url], stderr=subprocess.PIPE, text=True, timeout=30)
    assert child.returncode == 0
    assert "2 events undelivered" in child.stderr


def test_a_client_that_nobody_refers_to_any_more_says_what_it_lost(crossing_location: Location) -> None:
    location = reachable(crossing_location)
    code = "import gc, sys; from remit import Client; Client(sys.argv[1], linger=0.2).emit('lost'); gc.collect()"
    child = subprocess.run([sys.executable, "-c", code, location.url], stderr=subprocess.PIPE, text=True, timeout=30)
    assert child.returncode == 0
    assert "1 event undelivered" in child.stderr


def test_a_client_is_pickled_without_what_it_holds(crossing_location: Location) -> None:
    import pickle

    heard: list[int] = []
    with Server(crossing_location) as server:
        server.add_listener("n", heard.append)
        with Client(server.location, codec=JSON()) as client:
            client.emit("n", 1)
            with pickle.loads(pickle.dumps(client)) as copy:
                copy.emit("n", 2)
                tick_until(server, lambda: len(heard) == 2)
                assert copy.flush()
            assert client.flush()
    assert sorted(heard) == [1, 2]
