"""Forks: the checks of other processes: those that inherit a link, those that open their own, those that call."""

from __future__ import annotations

import os
from typing import Final

from remit.errors import ForkedLinkError
from remit.location import Location
from remit.testing.checks_lifecycle import refuses
from remit.testing.harness import Relay
from remit.testing.link_pair import Bench
from remit.testing.runner import Topic
from remit.testing.subprocesses import ended, forked, running
from remit.testing.violations import NotApplicable, expect, expect_same
from remit.transport import SERVER, Frame

__all__ = ["TOPIC"]


TOPIC: Final = Topic()
GREETING: Final = b"from a forked child"
LINGER: Final = 1.0
"""Seconds for an end that leaves in good order."""


@TOPIC.check(7, "A forked child gets ForkedLinkError, may close, and touches nothing that the parent holds.")
def a_forked_child_is_refused(bench: Bench) -> None:
    _needs_fork()
    with running(bench, inherit) as other:
        ended(bench, other)


def inherit(bench: Bench) -> None:
    pair = bench.pair()

    def misuse() -> None:
        refuses(ForkedLinkError, pair.server, pair.peer)
        refuses(ForkedLinkError, pair.client, SERVER)
        for end in pair.ends:
            end.link.close(LINGER)
            end.link.close(LINGER)

    forked(bench, misuse)
    for writer, to, _ in pair.directions:
        bench.put(writer, to, b"undisturbed", *pair.ends)
    bench.until(lambda: all(end.frames for end in pair.ends), "frames pass after a fork", *pair.ends)
    for end in pair.ends:
        expect_same(end.frames, [b"undisturbed"])
        expect(not end.losses, f"what a forked child did led to {end.losses}")


@TOPIC.check(7, "A forked child of a process that used it may open links of its own.", capability="forks")
def a_forked_child_opens_its_own(bench: Bench) -> None:
    _needs_fork()
    with running(bench, open_in_child) as other:
        ended(bench, other)


def open_in_child(bench: Bench) -> None:
    pair = bench.pair()

    crosses = bench.capabilities.crosses_processes

    def open_another() -> None:
        with Bench(bench.harness, bench.left) as own:
            if own.location != pair.location:
                mine = own.pair()
                own.put(mine.client, SERVER, b"in a child", *mine.ends)
                own.until(lambda: mine.server.frames, "a frame arrives in a forked child", *mine.ends)
            if crosses:
                client = own.connect(pair.location)
                own.until(lambda: client.ups, "a client in a forked child says Up", client)
                own.put(client, SERVER, GREETING)
                own.close(client, LINGER)

    forked(bench, open_another, *pair.ends)
    if crosses:
        bench.until(lambda: pair.server.frames, "a frame arrives from a forked child", *pair.ends)
        expect_same(pair.server.frames, [GREETING])


@TOPIC.check(4, "A client in another process reaches the server.", capability="crosses_processes")
def another_process_is_reached(bench: Bench) -> None:
    server = bench.bind()
    with running(bench, call, server.link.location) as other:

        def heard() -> bool:
            return bool(server.frames) or other.process.poll() is not None

        bench.until(heard, "a frame arrives from another process", server)
        expect(server.frames, other.last_words())
        bench.put(server, next(each.peer for each in server.arrivals if isinstance(each, Frame)), server.frames[0])
        ended(bench, other, server)
    told = [up.credentials.pid for up in server.ups if up.credentials is not None]
    said = [int(data) for data in server.frames]
    expect(told in ([], said), f"the peer says that it is process {said}, and its credentials say {told}")


@TOPIC.check(
    4, "By a host and a port alone, with bytes passed on from there, a client is reached.", capability="crosses_hosts"
)
def another_host_is_reached(bench: Bench) -> None:
    server = bench.bind()
    place = server.link.location
    expect(place.host and place.port, f"{place} names no host and no port; if it has a port of its own, write it there")
    relay = Relay(place)
    try:
        bench.meet(server, bench.connect(relay.location))
        expect(relay.passed, "a client reached the server in another way than by the address it was given")
    finally:
        relay.close()


def call(bench: Bench, place: Location) -> None:
    """As the other process: tell the server who this is, and hear it repeated."""
    client = bench.connect(place)
    bench.until(lambda: client.ups, "a client in another process says Up", client)
    bench.put(client, SERVER, b"%d" % os.getpid())
    bench.until(lambda: client.frames, "a client in another process is answered", client)
    expect_same(client.frames, [b"%d" % os.getpid()])
    bench.close(client, LINGER)


def _needs_fork() -> None:
    if not hasattr(os, "fork"):
        raise NotApplicable("this system has no fork")
