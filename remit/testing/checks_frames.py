"""Checks of frames between two ends: their delivery, the results of send, full queues, and waiting."""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Final

from remit.errors import FrameTooLarge
from remit.testing.runner import check
from remit.testing.trial import LONG_WAIT_S, LinkEnd, LinkPair, NotApplicable, Trial, Violation, expect, expect_frames
from remit.transport import SERVER, Peer, Sent, Waker

# Bytes of frames, around the sizes at which wire formats change their encoding of a length.
SIZES: Final = (1, 2, 125, 126, 255, 256, 1000, 65_535, 65_536, 300_000, 1_048_000)
# A transport may declare a larger max_frame than the memory of the machine allows.
LARGEST: Final = 64 * 1024 * 1024
BURST: Final = 600
# The last frame of each check: if an earlier frame is repeated, the copy arrives before it.
END: Final = b"end of frames"
CHUNK: Final = bytes(range(256)) * 64
UNBOUNDED_BYTES: Final = 64 * 1024 * 1024  # A queue that accepts more counts as unbounded.
ROOM_WAIT_S: Final = 0.05  # A backend may empty its queue in this time, before the queue counts as full.
FAST_CALL_S: Final = 0.05
TRIES: Final = 10


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


def numbered(trial: Trial, number: int) -> bytes:
    """Return a large frame that begins with its number."""
    return trial.truncate(b"%08d" % number + CHUNK)


def fill_queue(trial: Trial, writer: LinkEnd, to: Peer) -> tuple[list[bytes], Sent]:
    """Send until a frame is refused twice, before and after ROOM_WAIT_S; return the accepted frames and the result."""
    accepted: list[bytes] = []
    window = trial.capabilities.window
    most = (UNBOUNDED_BYTES if window is None else window) // len(numbered(trial, 0))
    while len(accepted) < most:
        data = numbered(trial, len(accepted))
        if writer.link.send(to, data) is not Sent.ACCEPTED:
            writer.link.wait(ROOM_WAIT_S)
            if (result := writer.link.send(to, data)) is not Sent.ACCEPTED:
                return accepted, result
        accepted.append(data)
    return accepted, Sent.ACCEPTED


@check(4)
def a_full_queue_says_so_and_goes_on(trial: Trial) -> None:
    """A full queue returns FULL, accepts frames again once it is read, and loses or repeats none."""
    pair = trial.open_pair()
    for writer, to, reader in pair.directions:
        sent, result = fill_queue(trial, writer, to)
        bounded = trial.capabilities.window is not None or result is Sent.FULL
        seen = f"after {len(sent)} large frames that were not read, send returned {result.value}"
        expect(bounded, f"{seen}: declare a window, or return FULL")
        if result is Sent.FULL:
            sent.append(numbered(trial, len(sent)))
            _send_through_full_queue(trial, writer, to, reader, sent[-1])
        trial.expect_received(reader, sent, reader, writer)


def _send_through_full_queue(trial: Trial, writer: LinkEnd, to: Peer, reader: LinkEnd, data: bytes) -> None:
    """Send one more frame through a full queue: `wait` must return once the queue is read."""
    refused, accepted = threading.Event(), threading.Event()

    def write() -> None:
        while (result := writer.link.send(to, data)) is Sent.FULL:
            refused.set()
            writer.link.wait(LONG_WAIT_S)
        refused.set()
        expect(result is Sent.ACCEPTED, f"after FULL and wait, send returned {result.value}")
        accepted.set()

    with trial.in_thread(write, writer):
        expect(refused.wait(trial.seconds_left), "send on a full queue does not return")
        with contextlib.suppress(Violation):  # The error of the writing thread says more.
            trial.wait_until(accepted.is_set, "a full queue that is read accepts a frame", reader)


@check(6)
def a_full_queue_does_not_block(trial: Trial) -> None:
    """Link.send on a full queue returns immediately."""
    pair = trial.open_pair()
    for writer, to, _ in pair.directions:
        _, result = fill_queue(trial, writer, to)
        if result is Sent.FULL:
            expect_fast(partial(writer.link.send, to, numbered(trial, 0)), "send on a full queue")


@check(6)
def receive_does_not_block(trial: Trial) -> None:
    """Link.receive returns None immediately if no arrival is queued."""
    pair = trial.open_pair()
    for end in pair.ends:
        expect_fast(end.drain, "receive without a queued arrival")
        expect(end.receive() is None, "receive returned an arrival although nothing was sent")
        expect(not end.frames, f"frames arrived although none were sent: {end.frames}")


def expect_fast(call: Callable[[], object], what: str) -> None:
    """Expect the fastest of several calls to return immediately: slower ones may be due to a busy machine."""
    fastest = LONG_WAIT_S
    for _ in range(TRIES):
        began = time.monotonic()
        call()
        fastest = min(fastest, time.monotonic() - began)
        if fastest <= FAST_CALL_S:
            return
    raise Violation(f"{what} blocks: the fastest of {TRIES} calls took {fastest:.3f} s")


@check(4)
def send_without_a_server_is_gone(trial: Trial) -> None:
    """Link.send returns GONE while no server is bound."""
    client = trial.connect(trial.free_location())
    client.drain()
    expect(not client.ups, "the client reports Up although no server is bound")
    result = client.link.send(SERVER, b"lost")
    expect(result is Sent.GONE, f"send without a server returned {result.value}")


@check(4)
def an_unknown_peer_is_gone(trial: Trial) -> None:
    """Link.send returns GONE for an unknown peer token."""
    pair = trial.open_pair()
    result = pair.server.link.send("unknown", b"lost")
    expect(result is Sent.GONE, f"send to an unknown peer returned {result.value}")


@check(6)
def wait_ends_by_itself(trial: Trial) -> None:
    """Link.wait returns by its timeout."""
    for end in trial.open_pair().ends:
        for timeout in (0.0, 0.05):
            trial.run_in_thread(partial(end.link.wait, timeout), end)


def _needs_each_frame(trial: Trial) -> None:
    if trial.capabilities.lossy:
        raise NotApplicable("the transport may lose the frame that ends an unbounded wait")


def receive_one_by_one(end: LinkEnd, count: int) -> None:
    """Receive single arrivals, each after an unbounded wait, until ``count`` frames are recorded."""
    while len(end.frames) < count:
        end.link.wait(LONG_WAIT_S)
        if (arrival := end.link.receive()) is not None:
            end.arrivals.append(arrival)


@check(8)
def a_frame_ends_a_wait(trial: Trial) -> None:
    """An arriving frame ends Link.wait."""
    _needs_each_frame(trial)
    pair = trial.open_pair()
    for writer, to, reader in pair.directions:
        for count in range(1, 4):
            with trial.in_thread(partial(receive_one_by_one, reader, count), reader):
                trial.send(writer, to, b"wake up")


@check(8)
def wait_is_level_triggered(trial: Trial) -> None:
    """While frames are queued, each Link.wait returns immediately, regardless of earlier receives."""
    _needs_each_frame(trial)
    pair = trial.open_pair()
    for writer, to, reader in pair.directions:
        # First with a reader that was polled while the frames arrived, then with one that was not.
        for polled in (True, False):
            words = [b"1", b"2", b"3"]
            if polled:
                for data in words:
                    trial.send(writer, to, data, *pair.ends)
            else:
                words = [data for data in words if writer.link.send(to, data) is Sent.ACCEPTED]
            trial.run_in_thread(partial(receive_one_by_one, reader, len(words)), reader, writer)
            expect_frames(reader.frames, words, lossy=bool(reader.losses))
            trial.poll(*pair.ends)
            reader.discard_frames()


@check(6)
def a_waker_ends_a_wait(trial: Trial) -> None:
    """A waker ends Link.wait, and every further wait until it is cleared."""
    pair = trial.open_pair()
    with contextlib.closing(Waker()) as waker:
        for end in pair.ends:
            with trial.in_thread(partial(end.link.wait, LONG_WAIT_S, waker), end):
                waker.wake()
            for _ in range(2):
                trial.run_in_thread(partial(end.link.wait, LONG_WAIT_S, waker), end)
            waker.clear()


class _RecordingWaker(Waker):
    """Waker that records the threads which read its file descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.threads: set[int] = set()

    def fileno(self) -> int:
        self.threads.add(threading.get_ident())
        return super().fileno()


@check(11)
def no_user_code_on_another_thread(trial: Trial) -> None:
    """Objects passed in by the caller are called on the caller's thread only."""
    pair = trial.open_pair()
    with contextlib.closing(_RecordingWaker()) as waker:
        for end in pair.ends:
            end.link.wait(ROOM_WAIT_S, waker)
        if not waker.threads:
            raise NotApplicable("wait did not call waker.fileno()")
        expect(waker.threads == {threading.get_ident()}, "wait called waker.fileno() from another thread")
