"""Flow: the checks of what send says, of queues that fill up, and of waiting."""

from __future__ import annotations

import contextlib
import threading
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Final

from remit.testing.link_pair import LONG, Bench, End
from remit.testing.runner import Topic
from remit.testing.violations import NotApplicable, Violation, expect, expect_same
from remit.transport import SERVER, Peer, Sent, Waker

__all__ = ["TOPIC"]


TOPIC: Final = Topic()
CHUNK: Final = bytes(range(256)) * 64
"""What follows the number in each frame of those that fill a queue: 16 KiB, or as much as fits."""
PLENTY: Final = 64 * 1024 * 1024
"""Bytes after which a queue that is still not full has no bound."""
ROOM: Final = 0.05
"""Seconds in which a backend may make room, before a queue counts as full."""
AT_ONCE: Final = 0.05
"""Seconds within which the fastest of some calls returns if it does not block."""
TRIES: Final = 10


def numbered(bench: Bench, number: int) -> bytes:
    """Return the frame of a number, among those that fill a queue."""
    return bench.fitting(b"%08d" % number + CHUNK)


def limit(bench: Bench) -> int:
    """Return how many of those a transport may take without a reader."""
    window = bench.capabilities.window
    return (PLENTY if window is None else window) // len(numbered(bench, 0))


def fill(bench: Bench, writer: End, to: Peer) -> tuple[list[bytes], Sent]:
    """Send until a frame is refused and, after a moment for the backend to make room, refused again."""
    taken: list[bytes] = []
    most = limit(bench)
    while len(taken) < most:
        data = numbered(bench, len(taken))
        if (said := writer.link.send(to, data)) is not Sent.ACCEPTED:
            writer.link.wait(ROOM)
            if (said := writer.link.send(to, data)) is not Sent.ACCEPTED:
                return taken, said
        taken.append(data)
    return taken, Sent.ACCEPTED


@TOPIC.check(4, "A queue that fills up says FULL, goes on when it is read, and loses and doubles nothing.")
def a_full_queue_says_so_and_goes_on(bench: Bench) -> None:
    pair = bench.pair()
    for writer, to, reader in pair.directions:
        taken, said = fill(bench, writer, to)
        bounded = bench.capabilities.window is not None or said is Sent.FULL
        expect(bounded, f"{len(taken)} large frames, unread, and then {said.value}: declare a window, or say FULL")
        if said is Sent.FULL:
            taken.append(numbered(bench, len(taken)))
            squeeze(bench, writer, to, reader, taken[-1])
        bench.collect(reader, len(taken), reader, writer)
        expect_same(reader.frames, taken, lossy=bool(reader.losses) or bench.capabilities.lossy)


def squeeze(bench: Bench, writer: End, to: Peer, reader: End, data: bytes) -> None:
    """Send one more frame through a full queue: `wait` must return once it is read."""
    refused, accepted = threading.Event(), threading.Event()

    def write() -> None:
        while (said := writer.link.send(to, data)) is Sent.FULL:
            refused.set()
            writer.link.wait(LONG)
        refused.set()
        expect(said is Sent.ACCEPTED, f"a full queue went on with {said.value}")
        accepted.set()

    with bench.beside(write, writer):
        expect(refused.wait(bench.left), "send on a full queue does not return")
        with contextlib.suppress(Violation):  # the writer's own words are more to the point
            bench.until(accepted.is_set, "a full queue that is read takes a frame", reader)


@TOPIC.check(6, "send on a full queue returns at once.")
def a_full_queue_does_not_block(bench: Bench) -> None:
    pair = bench.pair()
    for writer, to, _ in pair.directions:
        _, said = fill(bench, writer, to)
        if said is Sent.FULL:
            at_once(partial(writer.link.send, to, numbered(bench, 0)), "send on a full queue")


@TOPIC.check(6, "receive returns None at once when nothing waits.")
def receive_does_not_block(bench: Bench) -> None:
    pair = bench.pair()
    for end in pair.ends:
        at_once(end.drain, "receive with nothing there")
        expect(end.receive() is None, "receive returned something although nothing was sent")
        expect(not end.frames, f"frames arrived although none were sent: {end.frames}")


def at_once(call: Callable[[], object], what: str) -> None:
    """Expect the fastest of some calls to take no time to speak of: a busy machine is no violation."""
    fastest = LONG
    for _ in range(TRIES):
        began = time.monotonic()
        call()
        fastest = min(fastest, time.monotonic() - began)
        if fastest <= AT_ONCE:
            return
    raise Violation(f"{what} blocks: it never took less than {fastest:.3f} s")


@TOPIC.check(4, "send says GONE while no server is there.")
def nobody_there_is_gone(bench: Bench) -> None:
    client = bench.connect(bench.place())
    client.drain()
    expect(not client.ups, "a client says Up although no server is there")
    said = client.link.send(SERVER, b"anybody?")
    expect(said is Sent.GONE, f"send to nobody says {said.value}")


@TOPIC.check(4, "send says GONE to a peer that never was.")
def an_unknown_peer_is_gone(bench: Bench) -> None:
    pair = bench.pair()
    said = pair.server.link.send("nobody", b"anybody?")
    expect(said is Sent.GONE, f"send to an unknown peer says {said.value}")


# -- waiting ---------------------------------------------------------------------------------------------------


@TOPIC.check(6, "wait ends by its timeout.")
def wait_ends_by_itself(bench: Bench) -> None:
    for end in bench.pair().ends:
        for timeout in (0.0, 0.05):
            with bench.beside(partial(end.link.wait, timeout), end):
                pass


def _needs_each_frame(bench: Bench) -> None:
    if bench.capabilities.lossy:
        raise NotApplicable("a frame for which this waits without a bound may vanish")


def receive_one_by_one(end: End, count: int) -> None:
    """Receive one at a time, waiting without a bound before each."""
    while len(end.frames) < count:
        end.link.wait(LONG)
        arrival = end.link.receive()
        if arrival is not None:
            end.arrivals.append(arrival)


@TOPIC.check(8, "A frame that arrives ends a wait.")
def a_frame_ends_a_wait(bench: Bench) -> None:
    _needs_each_frame(bench)
    pair = bench.pair()
    for writer, to, reader in pair.directions:
        for count in range(1, 4):
            with bench.beside(partial(receive_one_by_one, reader, count), reader):
                bench.put(writer, to, b"wake up")


@TOPIC.check(8, "While frames wait to be received, each wait returns at once, whatever was received before.")
def wait_is_level_triggered(bench: Bench) -> None:
    _needs_each_frame(bench)
    pair = bench.pair()
    for writer, to, reader in pair.directions:
        # Once after the reader has looked, and once while nobody does.
        for others in (pair.ends, ()):
            taken = three(bench, writer, to, others)
            with bench.beside(partial(receive_one_by_one, reader, len(taken)), reader, writer):
                pass
            expect_same(reader.frames, taken, lossy=bool(reader.losses))
            bench.turn(*pair.ends)
            reader.forget_frames()


def three(bench: Bench, writer: End, to: Peer, others: Sequence[End]) -> list[bytes]:
    """Send three frames, or as many of them as there is room for if no others have their turns."""
    words = [b"1", b"2", b"3"]
    if not others:
        return [data for data in words if writer.link.send(to, data) is Sent.ACCEPTED]
    for data in words:
        bench.put(writer, to, data, *others)
    return words


@TOPIC.check(6, "A waker ends a wait, and ends each wait until it is cleared.")
def a_waker_ends_a_wait(bench: Bench) -> None:
    pair = bench.pair()
    with contextlib.closing(Waker()) as waker:
        for end in pair.ends:
            with bench.beside(partial(end.link.wait, LONG, waker), end):
                waker.wake()
            for _ in range(2):
                with bench.beside(partial(end.link.wait, LONG, waker), end):
                    pass
            waker.clear()


class Watched:
    """A waker that keeps in mind which threads asked for its descriptor."""

    def __init__(self, waker: Waker) -> None:
        self.waker = waker
        self.threads: set[int] = set()

    def fileno(self) -> int:
        self.threads.add(threading.get_ident())
        return self.waker.fileno()


@TOPIC.check(11, "What the caller passes in is called on the caller's own thread.")
def no_user_code_on_another_thread(bench: Bench) -> None:
    pair = bench.pair()
    with contextlib.closing(Waker()) as waker:
        watched = Watched(waker)
        for end in pair.ends:
            end.link.wait(ROOM, watched)
        if not watched.threads:
            raise NotApplicable("the waker was not asked for its descriptor")
        expect(watched.threads == {threading.get_ident()}, "the waker was asked for its descriptor by another thread")
