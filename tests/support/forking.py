"""Run as a script with a location: links are opened, the process forks, and both sides say what they may do."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from functools import partial

from links import DEADLINE, Pair, frames, turn, until

from remit import Location
from remit.errors import ForkedLinkError
from remit.transport import SERVER, Arrival, Link


def refuses(call: Callable[[], object]) -> None:
    try:
        call()
    except ForkedLinkError:
        return
    raise AssertionError(f"not refused in a forked child: {call}")


def inherit(pair: Pair) -> None:
    """As the child: every verb refuses, and `close` is harmless."""
    for link, peer in ((pair.server, pair.peer), (pair.client, SERVER)):
        refuses(link.receive)
        refuses(partial(link.send, peer, b"from the child"))
        refuses(partial(link.wait, 0.0))
    for link in (pair.server, pair.client):
        link.close(1.0)
        link.close(1.0)


def open_another(pair: Pair) -> None:
    """As the child: a link of its own works."""
    client: Link = pair.transport.connect(pair.location)
    arrivals: list[Arrival] = []
    until(lambda: arrivals, lambda: turn((client, arrivals)))
    until(lambda: client.send(SERVER, b"from the child's own link").value == "accepted", lambda: turn((client, [])))
    client.close(DEADLINE)


def in_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid:
        return pid
    code = 1
    try:
        signal.alarm(int(DEADLINE))
        work()
        code = 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(code)


def outcome(pid: int, step: Callable[[], None]) -> None:
    """Wait for a child while the parent's links have their turns."""
    status: list[int] = []

    def ended() -> bool:
        status.extend(_ended(pid))
        return bool(status)

    until(ended, step)
    assert status == [0], f"the forked child ended with {status}"


def _ended(pid: int) -> list[int]:
    found, status = os.waitpid(pid, os.WNOHANG)
    return [os.waitstatus_to_exitcode(status)] if found else []


def main(url: str) -> None:
    with Pair(Location(url)) as pair:
        pair.meet()
        outcome(in_child(lambda: inherit(pair)), lambda: time.sleep(0.005))
        pair.to_server(b"still here")
        pair.to_client(b"still there")
        pair.until(lambda: frames(pair.at_server) and frames(pair.at_client))
        assert frames(pair.at_server) == [b"still here"]
        assert frames(pair.at_client) == [b"still there"]
        if pair.transport.capabilities.forks and pair.transport.capabilities.crosses_processes:
            outcome(in_child(lambda: open_another(pair)), pair.turn)
            pair.until(lambda: len(frames(pair.at_server)) == 2)
            assert frames(pair.at_server)[1] == b"from the child's own link"
    assert threading.active_count() >= 1
    print("ok")


if __name__ == "__main__":
    main(sys.argv[1])
