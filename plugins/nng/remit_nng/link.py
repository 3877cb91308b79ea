"""Base of both ends over nng, with Pair0 channels, the events of nng's threads, and the polling of descriptors."""

from __future__ import annotations

import atexit
import contextlib
import select
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, Final

import pynng.nng

from remit.errors import TransportError
from remit.location import Location
from remit.transport import Arrival, Capabilities, OwnedLink, Poller, Sent, Wakeable, Waker, register_after_fork

PIPE_EVENTS: Final = tuple(
    getattr(pynng.nng.lib, f"NNG_PIPE_EV_{event}") for event in ("ADD_PRE", "ADD_POST", "REM_POST")
)

# Each access through the class costs 70 ns on CPython 3.11.
_ACCEPTED: Final = Sent.ACCEPTED
_FULL: Final = Sent.FULL

_used = False
_inherited = False


def mark_used() -> None:
    """Record that nng is used in this process. Raises TransportError in a child forked after its parent used nng."""
    global _used
    if _inherited:
        raise TransportError(
            "nng was used before this process was forked, and aborts in forked processes; start the process with "
            "multiprocessing's methods spawn or forkserver, or by exec"
        )
    _used = True


def _close_collected(
    socket: Any,
    # Bound here: the interpreter clears the globals of modules before it collects the last sockets.
    is_ending: Callable[[], bool] = sys.is_finalizing,
    notify: Callable[..., int] = pynng.nng.lib.nng_pipe_notify,
    null: Any = pynng.nng.ffi.NULL,
    events: tuple[int, ...] = PIPE_EVENTS,
) -> None:
    if not is_ending():
        socket.close()
    elif hasattr(socket, "_socket"):
        # To close it would wait for callbacks, which Python no longer runs.
        for event in events:
            notify(socket.socket, event, null, null)


# pynng ends nng in an exit hook: a client that is used by a later hook would hang. So nng stays usable until the
# process ends; only sockets that the interpreter collects at its very end lose their callbacks.
atexit.unregister(pynng.nng._pynng_atexit)
pynng.Socket.__del__ = _close_collected


def _after_fork_in_child() -> None:
    # nng 1.11 (pynng 0.9) aborts a forked child at the first call if the parent has used nng. pynng calls it when a
    # socket is collected, so that call is disabled.
    global _inherited
    if _used:
        _inherited = True
        pynng.Socket.__del__ = lambda _: None


register_after_fork(_after_fork_in_child)


FOREVER: Final = float("inf")
CLAIM_TIMEOUT_S: Final = 2.0
"""Time within which a client must claim its channel, and within which a lobby must answer."""
MAX_CLOSE_WAIT_S: Final = 0.5
"""Longest wait of `close` for the peer to read everything: a peer may not read at all."""
DIAL_WAIT_S: Final = (0.05, 0.001)
"""Time within which a dial to this host ends, and the interval at which `close_dialing` checks for the connection."""
FULL_RETRY_S: Final = 0.005
"""Interval of attempts to send to a full channel for which no descriptor is left to poll."""
ENVELOPE_BYTES: Final = 1024
"""Margin of nng's size limit over ``max_frame``."""
BUFFER_FRAMES: Final = 64
"""Frames that nng buffers in each direction of a channel."""
READS_PER_TURN: Final = 32
"""Frames read from one channel before the others are served."""


class PipeEvents:
    """Queue of pipe events from nng's threads. It wakes the link's owner."""

    def __init__(self) -> None:
        self.waker = Waker()
        self.queued: deque[tuple[Any, str]] = deque()

    def callback(self, subject: Any, event: str) -> Callable[[Any], None]:
        """Return a callback for pynng that queues ``event`` of ``subject``."""

        # Do nothing else: pynng calls this function on a thread of nng, with a lock held that most socket calls need.
        def queue_event(pipe: Any) -> None:
            self.queued.append((subject, event))
            self.waker.wake()

        return queue_event

    def pop_all(self) -> Iterator[tuple[Any, str]]:
        """Yield the queued events in order."""
        if self.queued:  # without a system call if there are none
            self.waker.clear()  # before the queue is emptied, or the wake of a new event would be lost
        while self.queued:
            yield self.queued.popleft()


class Channel:
    """A Pair0 socket between a server and one client.

    Its ``token``, random bytes from the lobby, is the first frame that the client sends, and the last frame that either
    end sends.
    """

    def __init__(self, events: PipeEvents, token: bytes, max_frame: int) -> None:
        self.token = token
        self.peer: int = 0
        """Peer token at the server's end, assigned when the client claims the channel."""
        self.up = False
        self.closed = False
        self.has_peer = False
        self.dialed_at = 0.0
        """Monotonic time at which the client has dialed."""
        self.deadline = 0.0
        """Monotonic time at which an unclaimed channel is closed."""
        self.socket = pynng.Pair0(
            recv_max_size=max_frame + ENVELOPE_BYTES, send_buffer_size=BUFFER_FRAMES, recv_buffer_size=BUFFER_FRAMES
        )
        try:
            # Read once: nng creates it at the first call.
            self.descriptor: int = self.socket.recv_fd
            """Descriptor that is readable while a frame waits. It is level-triggered."""
        except pynng.NNGException:
            self.socket.close()
            raise
        self._poll = select.poll()
        self._poll.register(self.descriptor, select.POLLIN)
        self.socket.add_pre_pipe_connect_cb(self._admit_pipe)
        self.socket.add_post_pipe_connect_cb(events.callback(self, "connected"))
        self.socket.add_post_pipe_remove_cb(events.callback(self, "removed"))

    def _admit_pipe(self, pipe: Any) -> None:
        # Pair0 accepts another peer after the first has left, and reports "removed" also for a peer that it refuses.
        if self.has_peer:
            pipe.close()
        self.has_peer = True

    def send(self, frame: bytes) -> Sent:
        """Send a frame."""
        try:
            self.socket.send(frame, block=False)
        except pynng.TryAgain:
            return _FULL
        except pynng.NNGException:
            return Sent.GONE
        return _ACCEPTED

    def read(self) -> list[bytes]:
        """Return up to `READS_PER_TURN` of the waiting frames."""
        frames: list[bytes] = []
        with contextlib.suppress(pynng.TryAgain, pynng.Closed):
            while len(frames) < READS_PER_TURN:
                frames.append(receive_frame(self.socket))
                # A receive that fails takes ten times as long.
                if not self._poll.poll(0):
                    break
        return frames

    def close(self) -> None:
        """Close the socket. nng 1.11 has no linger: frames that it has not sent yet are lost."""
        self.closed = True
        close_dialing(self.socket, self.dialed_at)


def close_dialing(socket: Any, dialed_at: float) -> None:
    """Close a socket that has dialed, once it is connected or `DIAL_WAIT_S` has passed.

    nng 1.11 leaks the descriptor of a connection that is established while its socket is closed.
    """
    while not socket.pipes and time.monotonic() < dialed_at + DIAL_WAIT_S[0]:
        time.sleep(DIAL_WAIT_S[1])
    socket.close()


def receive_frame(socket: Any) -> bytes:
    """Return the next frame. Raises TryAgain if there is none, and other NNGExceptions."""
    try:
        frame: bytes = socket.recv(block=False)
    except RuntimeError:
        return b""  # pynng 0.9 receives an empty frame, but fails to unpack its null pointer
    return frame


class NngLink(OwnedLink):
    """Base of both ends. nng's threads only queue events; the link's owner does everything else."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self.next_deadline = FOREVER
        """Monotonic time of the next `handle_deadline`."""
        self._poller = Poller()
        self._events = PipeEvents()
        self._arrivals: deque[Arrival] = deque()
        self._poller.register(self._events.waker, select.POLLIN)
        self._readers: dict[int, Callable[[], object]] = {}
        self._full: dict[Channel, int] = {}
        """Channels without room, each with the descriptor that reports room, or -1."""

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None."""
        self._check()
        if not self._arrivals:
            self._poll_once(0.0)
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        self._check()
        if self._arrivals:
            return
        if -1 in self._full.values():
            timeout = min(timeout, FULL_RETRY_S)
        timeout = max(0.0, min(timeout, self.next_deadline - time.monotonic()))
        try:
            self._poller.watch_waker(waker)
            ready = self._poll_once(timeout)
        finally:
            self._poller.unwatch_waker()
        for channel in [channel for channel, writable in self._full.items() if writable in ready]:
            self._mark_writable(channel)

    def handle_deadline(self) -> None:
        """Act on `next_deadline`, which has passed, and set the next one."""

    def _handle_event(self, subject: Any, event: str) -> None:
        """Handle an event that a thread of nng has queued."""

    def _close_channels(self, deadline: float) -> None:
        """Close all sockets of the link."""

    def _release(self, linger: float) -> None:
        self._close_channels(time.monotonic() + min(linger, MAX_CLOSE_WAIT_S))
        self._close_descriptors()

    def _close_descriptors(self) -> None:
        self._poller.close()
        self._events.waker.close()

    def _poll_once(self, timeout: float) -> list[int]:
        """Handle frames, events and the deadline; return the descriptors that were ready."""
        ready = self._read_ready(timeout)
        if self._events.queued:
            for subject, event in self._events.pop_all():
                self._handle_event(subject, event)
        if self.next_deadline != FOREVER and time.monotonic() >= self.next_deadline:
            self.handle_deadline()
        return ready

    def _read_ready(self, timeout: float) -> list[int]:
        self._polling = True
        polled = self._poller.poll(timeout)
        self._polling = False
        ready = [descriptor for descriptor, _ in polled]
        for descriptor in ready:
            # None for a descriptor without a reader, and for a reader that an earlier one of this turn has removed.
            if reader := self._readers.get(descriptor):
                reader()
        return ready

    def _add_reader(self, descriptor: int, reader: Callable[[], object]) -> None:
        self._poller.register(descriptor, select.POLLIN)
        self._readers[descriptor] = reader

    def _remove_reader(self, descriptor: int) -> None:
        if self._readers.pop(descriptor, None) is not None:
            self._poller.unregister(descriptor)

    def _send_on(self, channel: Channel, frame: bytes) -> Sent:
        sent = channel.send(frame)
        if sent is not _FULL:
            if self._full:
                self._mark_writable(channel)
        elif channel not in self._full:
            self._full[channel] = -1
            # nng creates the descriptor at the first use, and may find none left.
            with contextlib.suppress(pynng.NNGException):
                self._full[channel] = writable = channel.socket.send_fd
                self._poller.register(writable, select.POLLIN)
        return sent

    def _discard_channel(self, channel: Channel) -> None:
        self._remove_reader(channel.descriptor)
        self._mark_writable(channel)
        channel.close()

    def _mark_writable(self, channel: Channel) -> None:
        writable = self._full.pop(channel, -1)
        if writable >= 0:
            self._poller.unregister(writable)

    def _drain(self, channels: list[Channel], deadline: float) -> None:
        """Send the token on each channel, and wait until its peer has closed it: the peer has read everything then."""
        unsent = [channel for channel in channels if channel.up]
        waiting = set(unsent)
        while waiting and (left := deadline - time.monotonic()) > 0:
            unsent = [each for each in unsent if each in waiting and self._send_on(each, each.token) is Sent.FULL]
            self._read_ready(min(left, FULL_RETRY_S) if -1 in self._full.values() else left)
            for subject, event in self._events.pop_all():
                if event == "removed":
                    waiting.discard(subject)
