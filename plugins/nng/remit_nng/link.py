"""Link: what both ends share: channels read by descriptor, notes of nng's threads, and the things that are due."""

from __future__ import annotations

import atexit
import select
import time
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import pynng.nng

from remit.errors import TransportError
from remit.location import Location
from remit.transport import Arrival, Capabilities, OwnedLink, Poller, Sent, Wakeable, register_after_fork
from remit_nng.channel import Channel, Notes

__all__ = ["CLAIM", "Descriptor", "NngLink", "used"]


_used = False
_inherited = False


def used() -> None:
    """Note that nng is about to be used here. Raises TransportError where it must not be."""
    global _used
    if _inherited:
        raise TransportError(
            "nng was used before this process was forked, and aborts in forked processes; start the process with "
            "multiprocessing's methods spawn or forkserver, or by exec"
        )
    _used = True


def _after_fork_in_child() -> None:
    """Keep what was inherited from calling nng by itself: at exit, and whenever a socket is collected."""
    global _inherited
    if _used:
        _inherited = True
        atexit.unregister(pynng.nng._pynng_atexit)
        pynng.Socket.__del__ = _leave


def _leave(inherited: object) -> None:
    pass


register_after_fork(_after_fork_in_child)


CLAIM: Final = 2.0
"""Seconds within which a channel that was given out must be claimed, and a lobby must have answered."""
LAST_WORD: Final = 0.5
"""Seconds that `close` waits at the most for the other side to have read all: it may not be reading at all."""

FULL_WAIT: Final = 0.005
"""Seconds between two tries to send to a peer that was full, where no descriptor is left to be told by."""


class Descriptor:
    """A descriptor that outlives the question for it: nng answers none about a closed socket."""

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor

    def fileno(self) -> int:
        """Return it."""
        return self._descriptor


class NngLink(OwnedLink):
    """One end of the wire. nng's threads only take notes; everything is done by the link's owner."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self._poller = Poller()
        self._notes = Notes()
        self._arrivals: deque[Arrival] = deque()
        self._poller.register(self._notes.waker, select.POLLIN)
        self._readers: dict[int, Callable[[], object]] = {}
        self._full: dict[Channel, int] = {}
        """Channels without room, and the descriptors that tell when there is some again."""
        self._due = float("inf")

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None."""
        self._check()
        if not self._arrivals:
            self._turn(0.0)
        return self._arrivals.popleft() if self._arrivals else None

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if something is there to be done."""
        self._check()
        if self._arrivals:
            return
        if -1 in self._full.values():
            timeout = min(timeout, FULL_WAIT)
        timeout = max(0.0, min(timeout, self._due - time.monotonic()))
        try:
            self._poller.watch_waker(waker)
            told = self._turn(timeout)
        finally:
            self._poller.unwatch_waker()
        for channel in [channel for channel, room in self._full.items() if room in told]:
            self._has_room(channel)

    def close(self, linger: float) -> None:
        """End the link; frames already accepted leave within ``linger`` seconds."""
        if self._ending():
            self._leave(time.monotonic() + min(linger, LAST_WORD))
            self._discard()

    def _discard(self) -> None:
        self._poller.close()
        self._notes.waker.close()

    def _turn(self, timeout: float) -> set[int]:
        told = self._look(timeout)
        for subject, what in self._notes.take() if self._notes else ():
            self._noted(subject, what)
        if self._due != float("inf") and time.monotonic() >= self._due:
            self._keep_time()
        return told

    def _look(self, timeout: float) -> set[int]:
        """Read from what can be read; return the descriptors that had something to say."""
        told = {descriptor for descriptor, _ in self._poller.poll(timeout)}
        for descriptor in told:
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
        return told

    def _watch(self, channel: Channel | Descriptor, reader: Callable[[], object]) -> None:
        self._poller.register(channel, select.POLLIN)
        self._readers[channel.fileno()] = reader

    def _unwatch(self, channel: Channel | Descriptor) -> None:
        if self._readers.pop(channel.fileno(), None) is not None:
            self._poller.unregister(channel)
        if isinstance(channel, Channel):
            self._has_room(channel)

    def _offer(self, channel: Channel, frame: bytes) -> Sent:
        sent = channel.send(frame)
        if sent is not Sent.FULL:
            self._has_room(channel)
        elif channel not in self._full:
            self._full[channel] = room = channel.room()
            if room >= 0:
                self._poller.register(Descriptor(room), select.POLLIN)
        return sent

    def _has_room(self, channel: Channel) -> None:
        room = self._full.pop(channel, -1)
        if room >= 0:
            self._poller.unregister(Descriptor(room))

    def _finish(self, channels: list[Channel], deadline: float) -> None:
        """Say the last word on channels, and wait until the other side has closed them: then it has read all."""
        saying = [channel for channel in channels if channel.up]
        waiting = set(saying)
        while waiting and (left := deadline - time.monotonic()) > 0:
            saying = [
                channel for channel in saying if channel in waiting and self._offer(channel, channel.token) is Sent.FULL
            ]
            self._look(min(left, FULL_WAIT) if -1 in self._full.values() else left)
            for subject, what in self._notes.take():
                if what == "removed":
                    waiting.discard(subject)

    def _noted(self, subject: Any, what: str) -> None:
        raise NotImplementedError

    def _keep_time(self) -> None:
        raise NotImplementedError

    def _leave(self, deadline: float) -> None:
        raise NotImplementedError
