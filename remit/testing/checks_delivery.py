"""Checks of frame delivery: content, order, duplicates and size."""

from __future__ import annotations

import os
from typing import Final

from remit.errors import FrameTooLarge
from remit.testing.link_pair import LinkEnd, LinkPair, Trial
from remit.testing.runner import check
from remit.testing.violations import Violation, expect, expect_frames
from remit.transport import Peer, Sent

SIZES: Final = (1, 2, 125, 126, 255, 256, 1000, 65_535, 65_536, 300_000, 1_048_000)
"""Bytes of frames, around the sizes at which wires change how they say a length."""
LARGEST: Final = 64 * 1024 * 1024
"""Bytes of the largest frame tried, even if a transport declares more."""
MANY: Final = 2000
BURST: Final = 600
PADDING: Final = 200
"""Bytes that make each frame of a burst a little larger than its number."""


def deliver(trial: Trial, pair: LinkPair, frames: list[bytes]) -> None:
    """Send frames both ways, and one more that shows whether anything came twice."""
    expected = [*frames, b"and nothing more"]
    for data in expected:
        for writer, to, _ in pair.directions:
            trial.send(writer, to, data, *pair.ends)
    for writer, _, reader in pair.directions:
        trial.receive_frames(reader, len(expected), reader, writer)
    trial.poll(*pair.ends)
    for _, _, reader in pair.directions:
        expect_frames(reader.frames, expected, lossy=bool(reader.losses) or trial.capabilities.lossy)


@check(1)
def any_bytes_pass(trial: Trial) -> None:
    """Any bytes arrive unchanged, in both directions."""
    frames = [b"\x00", b"\xff" * 3, bytes(range(256)), b"\r\n\r\n", b'{"text": "\xc3\xa4"}']
    deliver(trial, trial.open_pair(), [trial.truncate(data) for data in frames])


@check(1)
def frames_arrive_whole(trial: Trial) -> None:
    """A frame of any size up to max_frame arrives whole."""
    pair = trial.open_pair()
    deliver(trial, pair, [os.urandom(size) for size in SIZES if size <= trial.capabilities.max_frame])


@check(1)
def frames_keep_their_edges(trial: Trial) -> None:
    """Frames sent in one burst keep their boundaries: none is split or merged."""
    deliver(trial, trial.open_pair(), [trial.truncate(bytes([size]) * size) for size in range(1, 120)])


@check(2)
def frames_arrive_in_order(trial: Trial) -> None:
    """Frames of one peer and direction arrive in order."""
    deliver(trial, trial.open_pair(), [b"%d" % number for number in range(MANY)])


@check(2)
def sizes_arrive_in_order(trial: Trial) -> None:
    """Large and small frames arrive in the order of sending."""
    pair = trial.open_pair()
    large = min(200_000, trial.capabilities.max_frame)
    deliver(trial, pair, [b"%d" % number * (large // 2 if number % 4 == 0 else 1) for number in range(10)])


@check(3)
def no_frame_arrives_twice(trial: Trial) -> None:
    """No frame arrives twice, not even the last one."""
    pair = trial.open_pair()
    for number in range(20):
        for writer, to, _ in pair.directions:
            trial.send(writer, to, b"%d" % number, *pair.ends)
            trial.poll(*pair.ends)
    for _, _, reader in pair.directions:
        trial.receive_frames(reader, 20, *pair.ends)
        trial.poll(*pair.ends)
        lossy = bool(reader.losses) or trial.capabilities.lossy
        expect_frames(reader.frames, [b"%d" % number for number in range(20)], lossy=lossy)


@check(4)
def a_burst_is_taken_or_refused(trial: Trial) -> None:
    """In a burst at a busy reader, each ACCEPTED frame arrives and each refused frame does not."""
    pair = trial.open_pair()
    for writer, to, reader in pair.directions:
        taken = send_burst(trial, writer, to)
        expect(taken, f"not one frame of {BURST} was taken")
        trial.receive_frames(reader, len(taken), reader, writer)
        trial.send(writer, to, b"and nothing more", reader, writer)
        trial.receive_frames(reader, len(taken) + 1, reader, writer)
        lossy = bool(reader.losses) or trial.capabilities.lossy
        expect_frames(reader.frames, [*taken, b"and nothing more"], lossy=lossy)


def send_burst(trial: Trial, writer: LinkEnd, to: Peer) -> list[bytes]:
    """Send many frames without a pause; return those that were taken."""
    frames = [trial.truncate(b"%d" % number + bytes(PADDING)) for number in range(BURST)]
    return [data for data in frames if writer.link.send(to, data) is Sent.ACCEPTED]


@check(9)
def the_largest_frame_passes(trial: Trial) -> None:
    """A frame of exactly max_frame bytes arrives, in both directions."""
    pair = trial.open_pair()
    data = os.urandom(1024) * (min(trial.capabilities.max_frame, LARGEST) // 1024 + 1)
    deliver(trial, pair, [data[: min(trial.capabilities.max_frame, LARGEST)]])


@check(9)
def a_larger_frame_is_refused(trial: Trial) -> None:
    """A frame over max_frame raises FrameTooLarge and leaves the connection intact."""
    pair = trial.open_pair()
    oversize = bytes(trial.capabilities.max_frame + 1)
    for writer, to, _ in pair.directions:
        expect_too_large(writer, to, oversize)
    trial.poll(*pair.ends)
    expect_no_loss(pair)
    deliver(trial, pair, [b"fits"])
    expect_no_loss(pair)


def expect_no_loss(pair: LinkPair) -> None:
    """Expect that no end has lost anything."""
    for end in pair.ends:
        expect(not end.losses, f"a frame that was too large was followed by {end.losses}")


def expect_too_large(writer: LinkEnd, to: Peer, oversize: bytes) -> None:
    """Expect FrameTooLarge."""
    try:
        said = writer.link.send(to, oversize)
    except FrameTooLarge:
        return
    raise Violation(f"a frame of {len(oversize)} bytes was {said.value} although max_frame is {len(oversize) - 1}")
