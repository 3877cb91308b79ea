"""Checks of ownership, close and recovery after a broken connection."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from remit.errors import LinkClosed, RemitError, WrongThreadError
from remit.testing.checks_frames import numbered
from remit.testing.harness import Disruption
from remit.testing.runner import check
from remit.testing.trial import LinkEnd, LinkPair, NotApplicable, Trial, Violation, expect, expect_frames
from remit.transport import SERVER, Frame, Peer, Sent

DESCRIPTORS: Final = Path("/proc/self/fd")
CYCLES: Final = 10
LINGER_S: Final = 0.2


def expect_refused(kind: type[RemitError], end: LinkEnd, peer: Peer) -> None:
    """Expect each method except `close` to raise this error."""
    methods: dict[str, Callable[[], object]] = {
        "send": partial(end.link.send, peer, b"refused"),
        "receive": end.link.receive,
        "wait": partial(end.link.wait, 0.0),
    }
    for name, call in methods.items():
        try:
            call()
        except kind:
            continue
        raise Violation(f"{name} does not raise {kind.__name__}")


@check(7)
def another_thread_is_refused(trial: Trial) -> None:
    """A thread that does not own the link gets WrongThreadError."""
    pair = trial.open_pair()
    for end, peer in ((pair.server, pair.peer), (pair.client, SERVER)):
        trial.run_in_thread(partial(expect_refused, WrongThreadError, end, peer))


@check(7)
def a_link_can_be_handed_over(trial: Trial) -> None:
    """A link is handed to another thread by setting its owner."""
    pair = trial.open_pair()
    data = b"from another thread"
    trial.run_in_thread(partial(trial.send, pair.client, SERVER, data, *pair.ends), *pair.ends)
    trial.wait_until(lambda: pair.server.frames, "a frame arrives", *pair.ends)
    expect_frames(pair.server.frames, [data])
    expect(pair.server.link.owner == threading.get_ident(), "the link's owner is not the thread that it was set to")


@check(12)
def a_closed_link_says_so(trial: Trial) -> None:
    """Link.close may be called twice; afterwards every other method raises LinkClosed."""
    pair = trial.open_pair()
    for end in (pair.client, pair.server):
        trial.close_end(end, 0.0)
        end.link.close(0.0)
        end.link.close(1.0)
        expect_refused(LinkClosed, end, SERVER)


def accepts(trial: Trial, writer: LinkEnd, to: Peer, most: int) -> bool:
    """Send large frames until one is refused; return whether as many as ``most`` are accepted."""
    return all(writer.link.send(to, numbered(trial, 0)) is Sent.ACCEPTED for _ in range(most))


@check(6)
def close_is_bounded_without_a_reader(trial: Trial) -> None:
    """Link.close returns by its linger although the peer reads nothing."""
    for linger in (0.0, LINGER_S):
        pair = trial.open_pair(trial.harness.location())
        for writer, to, _ in pair.directions:
            accepts(trial, writer, to, 100)
        for end in pair.ends:
            trial.run_in_thread(partial(trial.close_end, end, linger), end)


@check(6)
def close_is_bounded_without_a_server(trial: Trial) -> None:
    """Link.close returns by its linger although no server is bound."""
    client = trial.connect(trial.free_location())
    trial.run_in_thread(partial(trial.close_end, client, LINGER_S), client)


@check(2)
def accepted_frames_survive_close(trial: Trial) -> None:
    """Frames accepted before close arrive within its linger, or their loss is reported."""
    pair = trial.open_pair()
    sent = [b"%d" % number for number in range(50)]
    for data in sent:
        trial.send(pair.client, SERVER, data, *pair.ends)
    trial.run_in_thread(partial(trial.close_end, pair.client, trial.seconds_left / 2), pair.client)
    trial.expect_received(pair.server, sent)


@check(12)
def closed_links_leak_nothing(trial: Trial) -> None:
    """A closed link leaves no file descriptor and no thread behind."""
    if not DESCRIPTORS.is_dir():
        raise NotApplicable(f"this system has no {DESCRIPTORS}")

    def cycle() -> None:
        pair = trial.open_pair(trial.harness.location())
        trial.close_end(pair.client, 0.0)
        trial.close_end(pair.server, 0.0)

    def open_now() -> tuple[int, int]:
        return len(list(DESCRIPTORS.iterdir())), threading.active_count()

    # The first cycle also opens what a backend keeps for the whole process.
    cycle()
    descriptors, threads = open_now()
    for _ in range(CYCLES):
        cycle()

    def closed() -> bool:
        # Fewer than one for each cycle, and not none: other parts of the process may open some.
        now = open_now()
        return now[0] < descriptors + CYCLES and now[1] < threads + CYCLES

    idle = trial.bind(trial.harness.location())
    what = f"the descriptors and threads of {2 * CYCLES} closed links are released ({descriptors}, {threads} before)"
    trial.wait_until(closed, what, idle)


def break_and_recover(trial: Trial, kind: Disruption) -> None:
    """Disrupt a connection with frames in transit; expect all of them or the report of a loss, then new frames."""
    pair = trial.open_pair()
    sent = [b"%d" % number for number in range(10)]
    for data in sent:
        trial.send_both_ways(pair, data)
    trial.harness.disruptions[kind]()
    exchange_probes(trial, pair)
    # Either end may report the loss: a server need not see that its clients disconnect.
    lossy = bool(pair.client.losses or pair.server.losses) or trial.capabilities.lossy
    for end in pair.ends:
        expect_frames([data for data in end.frames if data.isdigit()], sent, lossy=lossy)
    kinds = [type(each).__name__ for each in pair.client.arrivals if not isinstance(each, Frame)]
    ups = [name for name in kinds if name != "Gap"]
    alternate = ups == ["Up", "Down"] * (len(ups) // 2) + ["Up"]
    expect(alternate, f"Up and Down do not alternate: the client reported {kinds}")


def exchange_probes(trial: Trial, pair: LinkPair) -> None:
    """Send probes from the client until one of them arrives and is answered."""
    probes = 0

    def answered() -> bool:
        nonlocal probes
        if pair.client.link.send(SERVER, b"probe %d" % probes) is Sent.ACCEPTED:
            probes += 1
        asked = [each for each in pair.server.arrivals if isinstance(each, Frame) and each.data[:5] == b"probe"]
        if asked:
            pair.server.link.send(asked[-1].peer, b"answer")
        return b"answer" in pair.client.frames

    trial.wait_until(answered, "frames pass again in both directions", *pair.ends)


@check(2, needs=Disruption.CUT_LINK)
def a_cut_is_reported(trial: Trial) -> None:
    """A cut connection is reported, and the link reconnects."""
    break_and_recover(trial, Disruption.CUT_LINK)


@check(2, needs=Disruption.RESTART_SERVER)
def a_restart_is_reported(trial: Trial) -> None:
    """A restart of the backend is reported, and the links reconnect."""
    break_and_recover(trial, Disruption.RESTART_SERVER)


@check(6, needs=Disruption.STALL_PEER)
def a_stalled_peer_blocks_no_call(trial: Trial) -> None:
    """While a connection is stalled no method blocks, and close returns by its linger."""
    pair = trial.open_pair()
    trial.harness.disruptions[Disruption.STALL_PEER]()
    for writer, to, _ in pair.directions:
        # 10,000 frames of 16 KiB fill any window if none is acknowledged.
        unbounded = accepts(trial, writer, to, 10_000)
        expect(not unbounded or trial.capabilities.window, "a stalled connection accepts an unbounded number of frames")
    for end in pair.ends:
        trial.poll(end)
        trial.run_in_thread(partial(trial.close_end, end, LINGER_S), end)
