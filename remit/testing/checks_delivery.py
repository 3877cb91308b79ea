"""Checks of frame delivery: content, order, duplicates and size."""

from __future__ import annotations

import os
from typing import Final

from remit.errors import FrameTooLarge
from remit.testing.runner import check
from remit.testing.trial import LinkPair, Trial, Violation, expect
from remit.transport import Sent

# Bytes of frames, around the sizes at which wire formats change their encoding of a length.
SIZES: Final = (1, 2, 125, 126, 255, 256, 1000, 65_535, 65_536, 300_000, 1_048_000)
# A transport may declare a larger max_frame than the memory of the machine allows.
LARGEST: Final = 64 * 1024 * 1024
BURST: Final = 600
# The last frame of each check: if an earlier frame is repeated, the copy arrives before it.
END: Final = b"end of frames"


def deliver(trial: Trial, pair: LinkPair, frames: list[bytes]) -> None:
    """Send frames in both directions, and expect each to arrive once."""
    sent = [*frames, END]
    for data in sent:
        trial.send_both_ways(pair, data)
    for end in pair.ends:
        trial.expect_received(end, sent, *pair.ends)


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
    deliver(trial, trial.open_pair(), [b"%d" % number for number in range(2000)])


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
    sent = [b"%d" % number for number in range(20)]
    for data in sent:
        trial.send_both_ways(pair, data)
        # Each frame is read on its own, so that a copy which is not sent with the next frame is seen, too.
        trial.poll(*pair.ends)
    for end in pair.ends:
        trial.expect_received(end, sent, *pair.ends)


@check(4)
def a_burst_is_taken_or_refused(trial: Trial) -> None:
    """In a burst at a busy reader, each ACCEPTED frame arrives and each refused frame does not."""
    pair = trial.open_pair()
    frames = [trial.truncate(b"%d" % number + bytes(200)) for number in range(BURST)]
    for writer, to, reader in pair.directions:
        accepted = [data for data in frames if writer.link.send(to, data) is Sent.ACCEPTED]
        expect(accepted, f"none of {BURST} frames was accepted")
        trial.expect_received(reader, accepted, reader, writer)
        trial.send(writer, to, END, reader, writer)
        trial.expect_received(reader, [*accepted, END], reader, writer)


@check(9)
def the_largest_frame_passes(trial: Trial) -> None:
    """A frame of exactly max_frame bytes arrives, in both directions."""
    pair = trial.open_pair()
    size = min(trial.capabilities.max_frame, LARGEST)
    deliver(trial, pair, [(os.urandom(1024) * (size // 1024 + 1))[:size]])


@check(9)
def a_larger_frame_is_refused(trial: Trial) -> None:
    """A frame over max_frame raises FrameTooLarge and leaves the connection intact."""
    pair = trial.open_pair()
    size = trial.capabilities.max_frame + 1
    for writer, to, _ in pair.directions:
        try:
            result = writer.link.send(to, bytes(size))
        except FrameTooLarge:
            continue
        raise Violation(f"send returned {result.value} for a frame of {size} bytes although max_frame is {size - 1}")

    def expect_intact() -> None:
        losses = [loss for end in pair.ends for loss in end.losses]
        expect(not losses, f"a refused frame of {size} bytes was followed by {losses}")

    trial.poll(*pair.ends)
    expect_intact()
    deliver(trial, pair, [b"fits"])
    expect_intact()
