"""Checks of the results of send, of full queues and of waiting."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from remit.testing.link_pair import LONG_WAIT_S, LinkEnd, Trial
from remit.testing.runner import check
from remit.testing.violations import NotApplicable, Violation, expect, expect_frames
from remit.transport import SERVER, Peer, Sent, Waker

CHUNK: Final = bytes(range(256)) * 64
"""What follows the number in each frame of those that fill a queue: 16 KiB, or as much as fits."""
UNBOUNDED_BYTES: Final = 64 * 1024 * 1024
"""Bytes after which a queue that is still not full has no bound."""
ROOM_WAIT_S: Final = 0.05
"""Seconds in which a backend may make room, before a queue counts as full."""
FAST_CALL_S: Final = 0.05
"""Seconds within which the fastest of some calls returns if it does not block."""
TRIES: Final = 10


def numbered(trial: Trial, number: int) -> bytes:
    """Return the frame of a number, among those that fill a queue."""
    return trial.truncate(b"%08d" % number + CHUNK)


def max_frames(trial: Trial) -> int:
    """Return how many of those a transport may take without a reader."""
    window = trial.capabilities.window
    return (UNBOUNDED_BYTES if window is None else window) // len(numbered(trial, 0))


def fill_queue(trial: Trial, writer: LinkEnd, to: Peer) -> tuple[list[bytes], Sent]:
    """Send until a frame is refused and, after a moment for the backend to make room, refused again."""
    taken: list[bytes] = []
    most = max_frames(trial)
    while len(taken) < most:
        data = numbered(trial, len(taken))
        if (said := writer.link.send(to, data)) is not Sent.ACCEPTED:
            writer.link.wait(ROOM_WAIT_S)
            if (said := writer.link.send(to, data)) is not Sent.ACCEPTED:
                return taken, said
        taken.append(data)
    return taken, Sent.ACCEPTED


@check(4)
def a_full_queue_says_so_and_goes_on(trial: Trial) -> None:
    """A full queue returns FULL, accepts frames again once it is read, and loses or repeats none."""
    pair = trial.open_pair()
    for writer, to, reader in pair.directions:
        taken, said = fill_queue(trial, writer, to)
        bounded = trial.capabilities.window is not None or said is Sent.FULL
        expect(bounded, f"{len(taken)} large frames, unread, and then {said.value}: declare a window, or say FULL")
        if said is Sent.FULL:
            taken.append(numbered(trial, len(taken)))
            send_through_full_queue(trial, writer, to, reader, taken[-1])
        trial.receive_frames(reader, len(taken), reader, writer)
        expect_frames(reader.frames, taken, lossy=bool(reader.losses) or trial.capabilities.lossy)


def send_through_full_queue(trial: Trial, writer: LinkEnd, to: Peer, reader: LinkEnd, data: bytes) -> None:
    """Send one more frame through a full queue: `wait` must return once it is read."""
    refused, accepted = threading.Event(), threading.Event()

    def write() -> None:
        while (said := writer.link.send(to, data)) is Sent.FULL:
            refused.set()
            writer.link.wait(LONG_WAIT_S)
        refused.set()
        expect(said is Sent.ACCEPTED, f"a full queue went on with {said.value}")
        accepted.set()

    with trial.in_thread(write, writer):
        expect(refused.wait(trial.seconds_left), "send on a full queue does not return")
        with contextlib.suppress(Violation):  # the writer's own words are more to the point
            trial.wait_until(accepted.is_set, "a full queue that is read takes a frame", reader)


@check(6)
def a_full_queue_does_not_block(trial: Trial) -> None:
    """Link.send on a full queue returns immediately."""
    pair = trial.open_pair()
    for writer, to, _ in pair.directions:
        _, said = fill_queue(trial, writer, to)
        if said is Sent.FULL:
            expect_fast(partial(writer.link.send, to, numbered(trial, 0)), "send on a full queue")


@check(6)
def receive_does_not_block(trial: Trial) -> None:
    """Link.receive returns None immediately if no arrival is queued."""
    pair = trial.open_pair()
    for end in pair.ends:
        expect_fast(end.drain, "receive with nothing there")
        expect(end.receive() is None, "receive returned something although nothing was sent")
        expect(not end.frames, f"frames arrived although none were sent: {end.frames}")


def expect_fast(call: Callable[[], object], what: str) -> None:
    """Expect the fastest of some calls to take no time to speak of: a busy machine is no violation."""
    fastest = LONG_WAIT_S
    for _ in range(TRIES):
        began = time.monotonic()
        call()
        fastest = min(fastest, time.monotonic() - began)
        if fastest <= FAST_CALL_S:
            return
    raise Violation(f"{what} blocks: it never took less than {fastest:.3f} s")


@check(4)
def send_without_a_server_is_gone(trial: Trial) -> None:
    """Link.send returns GONE while no server is bound."""
    client = trial.connect(trial.free_location())
    client.drain()
    expect(not client.ups, "a client says Up although no server is there")
    said = client.link.send(SERVER, b"anybody?")
    expect(said is Sent.GONE, f"send to nobody says {said.value}")


@check(4)
def an_unknown_peer_is_gone(trial: Trial) -> None:
    """Link.send returns GONE for an unknown peer token."""
    pair = trial.open_pair()
    said = pair.server.link.send("nobody", b"anybody?")
    expect(said is Sent.GONE, f"send to an unknown peer says {said.value}")


# -- waiting ---------------------------------------------------------------------------------------------------


@check(6)
def wait_ends_by_itself(trial: Trial) -> None:
    """Link.wait returns by its timeout."""
    for end in trial.open_pair().ends:
        for timeout in (0.0, 0.05):
            with trial.in_thread(partial(end.link.wait, timeout), end):
                pass


def _needs_each_frame(trial: Trial) -> None:
    if trial.capabilities.lossy:
        raise NotApplicable("a frame for which this waits without a bound may vanish")


def receive_one_by_one(end: LinkEnd, count: int) -> None:
    """Receive one at a time, waiting without a bound before each."""
    while len(end.frames) < count:
        end.link.wait(LONG_WAIT_S)
        arrival = end.link.receive()
        if arrival is not None:
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
        # Once after the reader has looked, and once while nobody does.
        for others in (pair.ends, ()):
            taken = send_three(trial, writer, to, others)
            with trial.in_thread(partial(receive_one_by_one, reader, len(taken)), reader, writer):
                pass
            expect_frames(reader.frames, taken, lossy=bool(reader.losses))
            trial.poll(*pair.ends)
            reader.discard_frames()


def send_three(trial: Trial, writer: LinkEnd, to: Peer, others: Sequence[LinkEnd]) -> list[bytes]:
    """Send three frames, or as many of them as there is room for if no others have their turns."""
    words = [b"1", b"2", b"3"]
    if not others:
        return [data for data in words if writer.link.send(to, data) is Sent.ACCEPTED]
    for data in words:
        trial.send(writer, to, data, *others)
    return words


@check(6)
def a_waker_ends_a_wait(trial: Trial) -> None:
    """A waker ends Link.wait, and every further wait until it is cleared."""
    pair = trial.open_pair()
    with contextlib.closing(Waker()) as waker:
        for end in pair.ends:
            with trial.in_thread(partial(end.link.wait, LONG_WAIT_S, waker), end):
                waker.wake()
            for _ in range(2):
                with trial.in_thread(partial(end.link.wait, LONG_WAIT_S, waker), end):
                    pass
            waker.clear()


class _RecordingWaker:
    """A waker that keeps in mind which threads asked for its descriptor."""

    def __init__(self, waker: Waker) -> None:
        self.waker = waker
        self.threads: set[int] = set()

    def fileno(self) -> int:
        self.threads.add(threading.get_ident())
        return self.waker.fileno()


@check(11)
def no_user_code_on_another_thread(trial: Trial) -> None:
    """Objects passed in by the caller are called on the caller's thread only."""
    pair = trial.open_pair()
    with contextlib.closing(Waker()) as waker:
        watched = _RecordingWaker(waker)
        for end in pair.ends:
            end.link.wait(ROOM_WAIT_S, watched)
        if not watched.threads:
            raise NotApplicable("the waker was not asked for its descriptor")
        expect(watched.threads == {threading.get_ident()}, "the waker was asked for its descriptor by another thread")
