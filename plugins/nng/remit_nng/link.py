"""Link: what both ends share: channels read by descriptor, notes of nng's threads, and the things that are due."""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any, Final

from remit.location import Location
from remit.poller import Poller
from remit.transport import Arrival, Capabilities, OwnedLink, Sent, Wakeable
from remit_nng import forks
from remit_nng.channel import Channel, Notes

__all__ = ["CLAIM", "NngLink"]

CLAIM: Final = 2.0
"""Seconds within which a channel that was given out must be claimed, and a lobby must have answered."""
LAST_WORD: Final = 0.5
"""Seconds that `close` waits at the most for the other side to have read all: it may not be reading at all."""
FULL_WAIT: Final = 0.005
"""Seconds between two tries to send to a peer that was full."""


class NngLink(OwnedLink):
    """One end of the wire. nng's threads only take notes; everything is done by the link's owner."""

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        super().__init__(location, capabilities)
        self._notes = Notes()
        self._arrivals: deque[Arrival] = deque()
        self._poller = Poller()
        self._poller.register(self._notes.waker, select.POLLIN)
        self._readers: dict[int, Any] = {}
        self._full: set[Channel] = set()
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
        if self._full:
            timeout = min(timeout, FULL_WAIT)
        timeout = max(0.0, min(timeout, self._due - time.monotonic()))
        with self._poller.watching(waker):
            self._turn(timeout)

    def close(self, linger: float) -> None:
        """End the link; frames already accepted leave within ``linger`` seconds."""
        if self._ending():
            self._leave(time.monotonic() + min(linger, LAST_WORD))
            self._poller.close()
            self._notes.waker.close()

    def after_fork(self) -> None:
        """In a forked child: refuse, and keep nng's objects from being collected."""
        super().after_fork()
        forks.abandon(self)

    def _turn(self, timeout: float) -> None:
        for descriptor, _ in self._poller.poll(timeout):
            reader = self._readers.get(descriptor)
            if reader is not None:
                reader()
        if self._notes:
            for subject, what in self._notes.take():
                self._noted(subject, what)
        if self._due != float("inf") and time.monotonic() >= self._due:
            self._keep_time()

    def _watch(self, channel: Any, reader: Any) -> None:
        descriptor = channel.fileno()
        self._poller.register(channel, select.POLLIN)
        self._readers[descriptor] = reader

    def _unwatch(self, channel: Any) -> None:
        descriptor = channel.fileno()
        if self._readers.pop(descriptor, None) is not None:
            self._poller.unregister(channel)

    def _offer(self, channel: Channel, frame: bytes) -> Sent:
        sent = channel.send(frame)
        if sent is Sent.FULL:
            self._full.add(channel)
        else:
            self._full.discard(channel)
        return sent

    def _finish(self, channels: list[Channel], deadline: float) -> None:
        """Say the last word on channels, and wait until the other side has closed them: then it has read all."""
        saying, waiting = [channel for channel in channels if channel.up], set(channels)
        for channel in channels:
            if not channel.up:
                waiting.discard(channel)
        while waiting and (left := deadline - time.monotonic()) > 0:
            saying = [channel for channel in saying if channel.send(channel.token) is Sent.FULL]
            for descriptor, _ in self._poller.poll(min(left, FULL_WAIT if saying else left)):
                reader = self._readers.get(descriptor)
                if reader is not None:
                    reader()
            for subject, what in self._notes.take():
                if what == "removed":
                    waiting.discard(subject)

    def _noted(self, subject: Any, what: str) -> None:
        raise NotImplementedError

    def _keep_time(self) -> None:
        raise NotImplementedError

    def _leave(self, deadline: float) -> None:
        raise NotImplementedError
