"""Disruptions: the checks of what a transport says when something breaks that neither end wanted broken."""

from __future__ import annotations

from functools import partial
from typing import Final

from remit.testing.bench import Bench
from remit.testing.check import Topic
from remit.testing.end import Pair
from remit.testing.flow import numbered
from remit.testing.harness import Disruption
from remit.testing.violation import expect, expect_same
from remit.transport import SERVER, Frame, Sent

__all__ = ["TOPIC"]

TOPIC: Final = Topic()
BEFORE: Final = 10
"""Frames each way before something breaks."""
BACKLOG: Final = 10_000
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


def resume(bench: Bench, pair: Pair) -> None:
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
        for _ in range(BACKLOG):
            if writer.link.send(to, numbered(bench, 0)) is not Sent.ACCEPTED:
                break
        else:
            expect(bench.capabilities.window, "a stalled connection takes frames without a bound")
    for end in pair.ends:
        bench.turn(end)
        with bench.beside(partial(bench.close, end, 0.2), end):
            pass
