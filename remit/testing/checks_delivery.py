"""Delivery: the checks of what becomes of frames: whole, in order, once, and not too large."""

from __future__ import annotations

import os
from typing import Final

from remit.errors import FrameTooLarge
from remit.testing.link_pair import Bench, End, LinkPair
from remit.testing.runner import Topic
from remit.testing.violations import Violation, expect, expect_same
from remit.transport import Peer, Sent

__all__ = ["TOPIC"]


TOPIC: Final = Topic()
SIZES: Final = (1, 2, 125, 126, 255, 256, 1000, 65_535, 65_536, 300_000, 1_048_000)
"""Bytes of frames, around the sizes at which wires change how they say a length."""
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of the largest frame tried, even if a transport declares more."""
MANY: Final = 2000
BURST: Final = 600
PADDING: Final = 200
"""Bytes that make each frame of a burst a little larger than its number."""


def deliver(bench: Bench, pair: LinkPair, frames: list[bytes]) -> None:
    """Send frames both ways, and one more that shows whether anything came twice."""
    expected = [*frames, b"and nothing more"]
    for data in expected:
        for writer, to, _ in pair.directions:
            bench.put(writer, to, data, *pair.ends)
    for writer, _, reader in pair.directions:
        bench.collect(reader, len(expected), reader, writer)
    bench.turn(*pair.ends)
    for _, _, reader in pair.directions:
        expect_same(reader.frames, expected, lossy=bool(reader.losses) or bench.capabilities.lossy)


@TOPIC.check(1, "Any bytes pass both ways, unchanged.")
def any_bytes_pass(bench: Bench) -> None:
    frames = [b"\x00", b"\xff" * 3, bytes(range(256)), b"\r\n\r\n", b'{"text": "\xc3\xa4"}']
    deliver(bench, bench.pair(), [bench.fitting(data) for data in frames])


@TOPIC.check(1, "A frame of any size up to max_frame arrives whole.")
def frames_arrive_whole(bench: Bench) -> None:
    pair = bench.pair()
    deliver(bench, pair, [os.urandom(size) for size in SIZES if size <= bench.capabilities.max_frame])


@TOPIC.check(1, "Frames sent in one go arrive as they were sent: none is split, none merged with another.")
def frames_keep_their_edges(bench: Bench) -> None:
    deliver(bench, bench.pair(), [bench.fitting(bytes([size]) * size) for size in range(1, 120)])


@TOPIC.check(2, "Frames of one peer and direction arrive in order.")
def frames_arrive_in_order(bench: Bench) -> None:
    deliver(bench, bench.pair(), [b"%d" % number for number in range(MANY)])


@TOPIC.check(2, "Large and small frames do not overtake each other.")
def sizes_arrive_in_order(bench: Bench) -> None:
    pair = bench.pair()
    large = min(200_000, bench.capabilities.max_frame)
    deliver(bench, pair, [b"%d" % number * (large // 2 if number % 4 == 0 else 1) for number in range(10)])


@TOPIC.check(3, "No frame arrives twice, not even the last one.")
def no_frame_arrives_twice(bench: Bench) -> None:
    pair = bench.pair()
    for number in range(20):
        for writer, to, _ in pair.directions:
            bench.put(writer, to, b"%d" % number, *pair.ends)
            bench.turn(*pair.ends)
    for _, _, reader in pair.directions:
        bench.collect(reader, 20, *pair.ends)
        bench.turn(*pair.ends)
        lossy = bool(reader.losses) or bench.capabilities.lossy
        expect_same(reader.frames, [b"%d" % number for number in range(20)], lossy=lossy)


@TOPIC.check(4, "Of a burst at a reader that is busy, each frame is taken and arrives, or is refused and does not.")
def a_burst_is_taken_or_refused(bench: Bench) -> None:
    pair = bench.pair()
    for writer, to, reader in pair.directions:
        taken = burst(bench, writer, to)
        expect(taken, f"not one frame of {BURST} was taken")
        bench.collect(reader, len(taken), reader, writer)
        bench.put(writer, to, b"and nothing more", reader, writer)
        bench.collect(reader, len(taken) + 1, reader, writer)
        lossy = bool(reader.losses) or bench.capabilities.lossy
        expect_same(reader.frames, [*taken, b"and nothing more"], lossy=lossy)


def burst(bench: Bench, writer: End, to: Peer) -> list[bytes]:
    """Send many frames without a pause; return those that were taken."""
    frames = [bench.fitting(b"%d" % number + bytes(PADDING)) for number in range(BURST)]
    return [data for data in frames if writer.link.send(to, data) is Sent.ACCEPTED]


@TOPIC.check(9, "A frame of exactly max_frame bytes passes both ways.")
def the_largest_frame_passes(bench: Bench) -> None:
    pair = bench.pair()
    data = os.urandom(1024) * (min(bench.capabilities.max_frame, LARGEST) // 1024 + 1)
    deliver(bench, pair, [data[: min(bench.capabilities.max_frame, LARGEST)]])


@TOPIC.check(9, "A frame over max_frame raises FrameTooLarge, and the connection does not notice.")
def a_larger_frame_is_refused(bench: Bench) -> None:
    pair = bench.pair()
    oversize = bytes(bench.capabilities.max_frame + 1)
    for writer, to, _ in pair.directions:
        refuse(writer, to, oversize)
    bench.turn(*pair.ends)
    undisturbed(pair)
    deliver(bench, pair, [b"fits"])
    undisturbed(pair)


def undisturbed(pair: LinkPair) -> None:
    """Expect that no end has lost anything."""
    for end in pair.ends:
        expect(not end.losses, f"a frame that was too large was followed by {end.losses}")


def refuse(writer: End, to: Peer, oversize: bytes) -> None:
    """Expect FrameTooLarge."""
    try:
        said = writer.link.send(to, oversize)
    except FrameTooLarge:
        return
    raise Violation(f"a frame of {len(oversize)} bytes was {said.value} although max_frame is {len(oversize) - 1}")
