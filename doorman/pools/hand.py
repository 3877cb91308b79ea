"""Hand: one worker that is used again, as its crew sees it: what it has been given, and how fast it is."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable
from typing import TYPE_CHECKING, Final

from doorman.identity import Credential
from doorman.pools.call import Call
from doorman.pools.page import Page
from doorman.pools.parcel import Entry, Incoming, Kind, Outgoing
from doorman.pools.serving import FROM_WORKER, TO_WORKER
from remit.errors import EmitError
from remit.patterns.answering import session_of

if TYPE_CHECKING:
    from doorman.task import Task
    from remit import Sender, Server

__all__ = ["Hand"]

AHEAD: Final = 0.008
"""Seconds of work that a worker has before it, beyond what it does: the manager may be as long at something else."""
MOST: Final = 512
"""Calls that a worker has in hand at once at the most."""


class Hand:
    """One worker."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.credential = Credential(name)
        self.page = Page.made()
        self.task: Task | None = None
        self.sender: Sender | None = None
        """The way to it; None until it is ready."""
        self.shares = False
        """Whether it writes on the page, too."""
        self.leaving = False
        """Whether it takes no more calls."""
        self.calls: dict[int, Call] = {}
        """What it has been given and has not answered, in order."""
        self.depth = 1
        """Calls that it may have in hand."""
        self._watched = False
        """Whether it was told to look after calls that wait behind a long one; one that was not has one at a time."""
        self._pace = 0.0
        self._server = server
        self._out = Outgoing(self.credential, TO_WORKER, self._post)
        self._in = Incoming(self.credential, FROM_WORKER)

    @property
    def room(self) -> int:
        """Calls that it may be given now; 0 until a good part of what it has is done, so that they travel together."""
        if self.sender is None or self.leaving or (self.calls and not self._watched):
            return 0
        room = self.depth - len(self.calls)
        return room if room * 2 >= self.depth else 0

    def begin(self, sender: Sender | None, *, shares: bool) -> None:
        """It is ready, and reached by ``sender``."""
        self.sender, self.shares = sender, shares
        self.page.hide()

    def give(self, calls: Iterable[Call]) -> None:
        """Send it calls."""
        entries: list[Entry] = []
        identity = None if self.task is None else self.task.identity
        for call in calls:
            call.worker = identity
            self.calls[call.number] = call
            entries.append((call.number, Kind.CALL, call.data))
        if len(entries) > 1 and not self._watched:
            self._watched = True
            entries.insert(0, (0, Kind.MORE, b""))
        self._out.send(entries)

    def dismiss(self) -> bool:
        """Tell it to end after what it runs, and to give back the rest; False if it cannot hear that yet."""
        if self.sender is not None:
            self._out.send([(0, Kind.LEAVE, b"")])
        return self.sender is not None

    def hear(self, serial: int, blob: bytes, signature: bytes) -> list[Entry]:
        """Return what it says. Raises ValueError, TypeError if it was not this worker who said that."""
        return self._in.take(serial, blob, signature)

    def paced(self, nanoseconds: int) -> None:
        """Learn how long its last calls took each, and give it as many as will keep it busy, but no more."""
        pace = nanoseconds / 1e9
        self._pace = (self._pace + pace) / 2 if self._pace else pace
        self.depth = 1 + min(MOST, int(AHEAD / self._pace)) if self._pace > 0 else MOST

    def slow(self) -> None:
        """Forget how fast it was: it has given back what waited behind a long call."""
        self._pace, self.depth = 0.0, 1

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        # Its session ends with it, and then its crew learns what it had not begun.
        with contextlib.suppress(EmitError):
            self._server.post_now(session_of(self.sender), "doorman.calls", (serial, blob, signature))
