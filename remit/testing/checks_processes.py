"""Checks that need another process: links after a fork, and clients elsewhere."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from typing import Final

from remit.errors import ForkedLinkError
from remit.location import Location
from remit.testing.checks_lifecycle import expect_refused
from remit.testing.harness import Relay
from remit.testing.link_pair import Trial
from remit.testing.runner import check
from remit.testing.subprocesses import run_in_fork, run_in_process, wait_for_exit
from remit.testing.violations import NotApplicable, expect, expect_frames
from remit.transport import SERVER, Frame

GREETING: Final = b"from a forked child"
LINGER_S: Final = 1.0


@check(7)
def a_forked_child_is_refused(trial: Trial) -> None:
    """A forked child gets ForkedLinkError, may close, and does not affect the parent's links."""
    _run_forking(trial, _misuse_inherited_links)


def _misuse_inherited_links(trial: Trial) -> None:
    pair = trial.open_pair()

    def misuse() -> None:
        expect_refused(ForkedLinkError, pair.server, pair.peer)
        expect_refused(ForkedLinkError, pair.client, SERVER)
        for end in pair.ends:
            end.link.close(LINGER_S)
            end.link.close(LINGER_S)

    run_in_fork(trial, misuse)
    trial.send_both_ways(pair, b"undisturbed")
    for end in pair.ends:
        trial.expect_received(end, [b"undisturbed"], *pair.ends)
        expect(not end.losses, f"calls in a forked child were followed by {end.losses} in the parent")


@check(7, capability="forks")
def a_forked_child_opens_its_own(trial: Trial) -> None:
    """A forked child of a process that used the transport may open its own links."""
    _run_forking(trial, _open_links_in_child)


def _open_links_in_child(trial: Trial) -> None:
    pair = trial.open_pair()
    crosses = trial.capabilities.crosses_processes

    def open_another() -> None:
        with Trial(trial.harness, trial.seconds_left) as own:
            if own.location != pair.location:
                mine = own.open_pair()
                own.send(mine.client, SERVER, b"in a child", *mine.ends)
                own.wait_until(lambda: mine.server.frames, "a frame arrives in a forked child", *mine.ends)
            if crosses:
                client = own.connect(pair.location)
                own.wait_until(lambda: client.ups, "a client in a forked child reports Up", client)
                own.send(client, SERVER, GREETING)
                own.close_end(client, LINGER_S)

    run_in_fork(trial, open_another, *pair.ends)
    if crosses:
        trial.wait_until(lambda: pair.server.frames, "a frame arrives from a forked child", *pair.ends)
        expect_frames(pair.server.frames, [GREETING])


@check(4, capability="crosses_processes")
def another_process_is_reached(trial: Trial) -> None:
    """A client in another process reaches the server."""
    server = trial.bind()
    with run_in_process(trial, call, server.link.location) as other:

        def arrived() -> bool:
            return bool(server.frames) or other.process.poll() is not None

        trial.wait_until(arrived, "a frame arrives from another process", server)
        expect(server.frames, other.last_error_line())
        trial.send(server, next(each.peer for each in server.arrivals if isinstance(each, Frame)), server.frames[0])
        wait_for_exit(trial, other, server)
    attested = [up.credentials.pid for up in server.ups if up.credentials is not None]
    reported = [int(data) for data in server.frames]
    expect(attested in ([], reported), f"the peer is process {reported}, and its credentials are of {attested}")


@check(4, capability="crosses_hosts")
def another_host_is_reached(trial: Trial) -> None:
    """A client reaches the server through a relay, by host and port alone."""
    server = trial.bind()
    place = server.link.location
    expect(place.host and place.port, f"{place} has no host and port, which `crosses_hosts` requires")
    with contextlib.closing(Relay(place)) as relay:
        trial.exchange_greetings(server, trial.connect(relay.location))
        expect(relay.passed, "the client did not connect through the host and port of its location")


def call(trial: Trial, place: Location) -> None:
    """In the other process: send the pid to the server, and expect the same frame as a reply."""
    client = trial.connect(place)
    trial.wait_until(lambda: client.ups, "a client in another process reports Up", client)
    trial.send(client, SERVER, b"%d" % os.getpid())
    trial.wait_until(lambda: client.frames, "the reply arrives in the other process", client)
    expect_frames(client.frames, [b"%d" % os.getpid()])
    trial.close_end(client, LINGER_S)


def _run_forking(trial: Trial, work: Callable[[Trial], None]) -> None:
    # Not in this process, whose other threads must not be forked.
    if not hasattr(os, "fork"):
        raise NotApplicable("this system has no fork")
    with run_in_process(trial, work) as other:
        wait_for_exit(trial, other)
