"""Disruptions: the checks of what a transport says when something breaks that neither end wanted broken."""

from __future__ import annotations

import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Final

from remit.errors import LinkClosed, RemitError, WrongThreadError
from remit.testing.checks_flow import numbered
from remit.testing.harness import Disruption
from remit.testing.link_pair import Bench, End, LinkPair
from remit.testing.runner import Topic
from remit.testing.violations import NotApplicable, Violation, expect, expect_same
from remit.transport import SERVER, Frame, Peer, Sent

__all__ = ["TOPIC", "refuses"]


TOPIC: Final = Topic()
DESCRIPTORS: Final = Path("/proc/self/fd")
CYCLES: Final = 10
BACKLOG: Final = 100
LAST_WORDS: Final = 50
LINGERS: Final = (0.0, 0.2)


def refuses(kind: type[RemitError], end: End, peer: Peer) -> None:
    """Expect that each verb but `close` raises an error of one kind."""
    verbs: dict[str, Callable[[], object]] = {
        "send": partial(end.link.send, peer, b"refused"),
        "receive": end.link.receive,
        "wait": partial(end.link.wait, 0.0),
    }
    for name, verb in verbs.items():
        try:
            verb()
        except kind:
            continue
        raise Violation(f"{name} does not raise {kind.__name__}")


@TOPIC.check(7, "A thread that does not own the link gets WrongThreadError.")
def another_thread_is_refused(bench: Bench) -> None:
    pair = bench.pair()
    for end, peer in ((pair.server, pair.peer), (pair.client, SERVER)):
        with bench.beside(partial(refuses, WrongThreadError, end, peer)):
            pass


@TOPIC.check(7, "A link is handed over by setting its owner.")
def a_link_can_be_handed_over(bench: Bench) -> None:
    pair = bench.pair()

    def send() -> None:
        bench.put(pair.client, SERVER, b"from another thread", *pair.ends)

    with bench.beside(send, *pair.ends):
        pass
    bench.until(lambda: pair.server.frames, "a frame arrives", *pair.ends)
    expect_same(pair.server.frames, [b"from another thread"])
    expect(pair.server.link.owner == threading.get_ident(), "owner is not what it was set to")


@TOPIC.check(12, "close may be called twice, and every other verb raises LinkClosed from then on.")
def a_closed_link_says_so(bench: Bench) -> None:
    pair = bench.pair()
    for end in (pair.client, pair.server):
        bench.close(end, 0.0)
        end.link.close(0.0)
        end.link.close(1.0)
        refuses(LinkClosed, end, SERVER)


@TOPIC.check(6, "close ends by its linger although nobody reads.")
def close_is_bounded_though_nobody_reads(bench: Bench) -> None:
    for linger in LINGERS:
        pair = bench.pair(bench.harness.location())
        for writer, to, _ in pair.directions:
            for _ in range(BACKLOG):
                if writer.link.send(to, numbered(bench, 0)) is not Sent.ACCEPTED:
                    break
        for end in pair.ends:
            with bench.beside(partial(bench.close, end, linger), end):
                pass


@TOPIC.check(6, "close ends by its linger although nobody is there.")
def close_is_bounded_though_nobody_is_there(bench: Bench) -> None:
    client = bench.connect(bench.place())
    with bench.beside(partial(bench.close, client, LINGERS[-1]), client):
        pass


@TOPIC.check(2, "What was accepted before close arrives within its linger, or its loss is said.")
def last_words_arrive(bench: Bench) -> None:
    pair = bench.pair()
    words = [b"%d" % number for number in range(LAST_WORDS)]
    for data in words:
        bench.put(pair.client, SERVER, data, *pair.ends)
    with bench.beside(partial(bench.close, pair.client, bench.left / 2), pair.client):
        pass
    bench.collect(pair.server, LAST_WORDS)
    expect_same(pair.server.frames, words, lossy=bool(pair.server.losses) or bench.capabilities.lossy)


@TOPIC.check(12, "A closed link leaves no descriptor and no thread behind.")
def nothing_is_left_behind(bench: Bench) -> None:
    if not DESCRIPTORS.is_dir():
        raise NotApplicable(f"this system has no {DESCRIPTORS}")

    def cycle() -> None:
        pair = bench.pair(bench.harness.location())
        bench.close(pair.client, 0.0)
        bench.close(pair.server, 0.0)

    def held() -> tuple[int, int]:
        return len(list(DESCRIPTORS.iterdir())), threading.active_count()

    cycle()
    descriptors, threads = held()
    for _ in range(CYCLES):
        cycle()

    def returned() -> bool:
        now = held()
        return now[0] < descriptors + CYCLES and now[1] < threads + CYCLES

    idle = bench.bind(bench.harness.location())
    what = f"the descriptors and threads of {2 * CYCLES} links are given back ({descriptors}, {threads} before)"
    bench.until(returned, what, idle)


BEFORE: Final = 10
"""Frames each way before something breaks."""
LONG_BACKLOG: Final = 10_000
"""Frames of 16 KiB after which a window that nobody moves must be full."""


def break_and_recover(bench: Bench, kind: Disruption) -> None:
    """Break it under traffic, send on, and expect all of it, or the word of a loss; then that it goes on."""
    pair = bench.pair()
    sent = [b"%d" % number for number in range(BEFORE)]
    for data in sent:
        for writer, to, _ in pair.directions:
            bench.put(writer, to, data, *pair.ends)
    bench.harness.disrupt(kind)
    resume(bench, pair)
    # Either end may say it: a server's need not see its clients go.
    lossy = bool(pair.client.losses or pair.server.losses) or bench.capabilities.lossy
    for _, _, reader in pair.directions:
        expect_same([data for data in reader.frames if data.isdigit()], sent, lossy=lossy)
    kinds = [type(each).__name__ for each in pair.client.arrivals if not isinstance(each, Frame)]
    ups = [name for name in kinds if name != "Gap"]
    expect(ups == ["Up", "Down"] * (len(ups) // 2) + ["Up"], f"Up and Down do not take turns: {kinds}")


def resume(bench: Bench, pair: LinkPair) -> None:
    """Send probes from the client until one arrives and is answered."""
    probes = 0

    def answered() -> bool:
        nonlocal probes
        if pair.client.link.send(SERVER, b"probe %d" % probes) is Sent.ACCEPTED:
            probes += 1
        asked = [each for each in pair.server.arrivals if isinstance(each, Frame) and each.data[:5] == b"probe"]
        if asked:
            pair.server.link.send(asked[-1].peer, b"answer")
        return b"answer" in pair.client.frames

    bench.until(answered, "a frame passes again each way", *pair.ends)


@TOPIC.check(2, "A connection that is cut is said, and another one is made.", needs=Disruption.CUT_LINK)
def a_cut_is_said(bench: Bench) -> None:
    break_and_recover(bench, Disruption.CUT_LINK)


@TOPIC.check(2, "A restart of the backend is said, and connections are made anew.", needs=Disruption.RESTART_SERVER)
def a_restart_is_said(bench: Bench) -> None:
    break_and_recover(bench, Disruption.RESTART_SERVER)


@TOPIC.check(6, "While a connection stalls no verb blocks, and close ends by its linger.", needs=Disruption.STALL_PEER)
def a_stalled_peer_blocks_nobody(bench: Bench) -> None:
    pair = bench.pair()
    bench.harness.disrupt(Disruption.STALL_PEER)
    for writer, to, _ in pair.directions:
        for _ in range(LONG_BACKLOG):
            if writer.link.send(to, numbered(bench, 0)) is not Sent.ACCEPTED:
                break
        else:
            expect(bench.capabilities.window, "a stalled connection takes frames without a bound")
    for end in pair.ends:
        bench.turn(end)
        with bench.beside(partial(bench.close, end, 0.2), end):
            pass
