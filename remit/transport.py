"""Transport: THE contract that a plugin author reads: two roles, five verbs, bytes only.

A transport moves whole frames between one server and many clients, and nothing else. Acknowledgement,
resending, de-duplication, flow control and liveness are built once, above it, in ``remit.protocol``: a
transport must be honest, not reliable.

What every transport promises:

1.  A frame arrives whole or not at all.
2.  Frames of one peer and direction arrive in order. One may be lost only together with a `Down`, a `Gap`
    or a declared ``lossy`` capability.
3.  The transport makes no duplicates.
4.  `Sent.ACCEPTED` means "taken", not "delivered". `Sent.FULL` means "not taken: try again after `wait`".
    `Sent.GONE` means "not taken: this peer is not there".
5.  `Down` is a token's last arrival; a token is never used again for another connection. At the client's
    end the only token is `SERVER`, which may come `Up` again after each `Down`.
6.  `send` and `receive` never block. `wait` returns by its timeout, `close` by its linger.
7.  A link is used by one thread at a time, whose ident is in ``owner``; any other thread gets
    `WrongThreadError`, any other process `ForkedLinkError`. `close` in a forked child touches nothing that
    the parent holds.
8.  `wait` is level-triggered: it returns at once while a frame waits to be received.
9.  A frame over ``capabilities.max_frame`` raises `FrameTooLarge` before the wire is touched.
10. A second server on one location raises `LocationInUse`.
11. No code of the user's runs on a transport's thread.
12. `close` may be called twice.
"""

from __future__ import annotations

import enum
import os
import threading
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias

from remit.errors import ForkedLinkError, FrameTooLarge, LinkClosed, WrongThreadError
from remit.event import Credentials

if TYPE_CHECKING:
    from remit.location import Location

__all__ = [
    "SERVER",
    "Arrival",
    "Capabilities",
    "Credentials",
    "Down",
    "Frame",
    "Gap",
    "Inherited",
    "Link",
    "OwnedLink",
    "Peer",
    "Sent",
    "Transport",
    "Up",
    "Wakeable",
    "Waker",
    "register_after_fork",
]


class Inherited(Protocol):
    """What a forked child inherits and must not use as it is."""

    def after_fork(self) -> None:
        """Called once in each forked child, in no order that could be relied on."""
        ...


# Plain references, no WeakSet: that is Python code, and whatever a child runs at first the kernel must copy for it.
_living: set[weakref.ref[Inherited]] = set()


def register_after_fork(thing: Inherited) -> None:
    """Have ``thing.after_fork()`` called in every forked child, for as long as it lives."""
    _living.add(weakref.ref(thing, _living.discard))


def _after_fork_in_child() -> None:
    for reference in tuple(_living):
        thing = reference()
        if thing is not None:
            thing.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)


Peer: TypeAlias = Hashable
"""A transport's token for one connection: opaque, and never used again for another."""

SERVER: Final = "server"
"""The only peer of a client's link."""


class Sent(enum.Enum):
    """What became of a frame given to `Link.send`."""

    ACCEPTED = "accepted"
    FULL = "full"
    GONE = "gone"


class Frame(NamedTuple):
    """A whole frame from a peer."""

    peer: Peer
    data: bytes


class Up(NamedTuple):
    """A peer can be reached."""

    peer: Peer
    credentials: Credentials | None = None


class Down(NamedTuple):
    """A peer's connection has ended; its token is dead."""

    peer: Peer
    why: str


class Gap(NamedTuple):
    """Frames may have been lost although no connection is known to have ended."""

    why: str


Arrival: TypeAlias = Frame | Up | Down | Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a transport can do. The core asks for these and never for a transport's name."""

    max_frame: int
    """Bytes of the largest frame it carries."""
    window: int | None = None
    """Bytes that may be under way to one peer before the backend itself would lose some; None: no bound."""
    crosses_processes: bool = True
    crosses_hosts: bool = False
    """A location's host and port are all that a client needs to reach the server."""
    lossy: bool = False
    """Frames may vanish without `Down` or `Gap`."""
    sees_peers: bool = True
    """The server's end reports `Up` and `Down` of each peer by itself, without sending anything."""
    attests_peers: bool = False
    """`Up` carries the peer's `Credentials`."""
    forks: bool = True
    """A forked child of a process that used it may open links of its own; if not, start processes by exec."""


class Wakeable(Protocol):
    """Anything with a descriptor that becomes readable when a `Link.wait` must return."""

    def fileno(self) -> int:
        """Return that descriptor."""
        ...


class Link(Protocol):
    """One end of the wire. See the module's contract."""

    location: Location
    """As opened; for a server on port 0, with the port that the system chose."""
    capabilities: Capabilities
    """The transport's, with what this location's options changed."""
    owner: int
    """Ident of the thread that may use the link; set it to hand the link over."""

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. Never blocks. Raises FrameTooLarge over ``capabilities.max_frame`` bytes."""
        ...

    def receive(self) -> Arrival | None:
        """Return what arrived next, or None when nothing waits. Never blocks."""
        ...

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier.

        Early: when something can be received, when a send that was `Sent.FULL` may go through now, while ``waker``
        is readable, or for no reason at all.
        """
        ...

    def close(self, linger: float) -> None:
        """End the link within ``linger`` seconds, in which frames already accepted may still leave."""
        ...


class Transport(Protocol):
    """What a plugin's hook returns: how to open links of one or more schemes."""

    capabilities: Capabilities
    options: Mapping[str, Callable[[str], Any]]
    """The options a location's query may carry, each with the function that reads its text. The core reads
    and removes its own options first: the locations given to `bind` and `connect` carry only these."""

    def bind(self, location: Location) -> Link:
        """Open the server's end: many peers. Raises LocationInUse, TransportError."""
        ...

    def connect(self, location: Location) -> Link:
        """Open the client's end: one peer, `SERVER`, which may come up later. Never blocks for long."""
        ...


class OwnedLink:
    """Base of a link: knows its thread and its process, and refuses all others.

    Call ``self._check(frame)`` first in ``send`` and ``self._check()`` first in the other verbs; in ``close``
    ask ``self._ending()``, which is True once, and only in the process that opened the link.
    """

    location: Location
    capabilities: Capabilities

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self.location = location
        self.capabilities = capabilities
        self.owner = threading.get_ident()
        self._closed = False
        self._forked = False
        register_after_fork(self)

    def _check(self, frame: bytes = b"") -> None:
        """Raise ForkedLinkError, LinkClosed, WrongThreadError or FrameTooLarge if the call is out of place."""
        if threading.get_ident() != self.owner or self._closed or self._forked:
            self._raise_misuse()
        if len(frame) > self.capabilities.max_frame:
            raise FrameTooLarge(
                f"a frame of {len(frame)} bytes is over this transport's {self.capabilities.max_frame}; "
                "send less at once, or raise max_frame in the location's options on both ends"
            )

    def _raise_misuse(self) -> None:
        where = f"the link to {self.location}"
        if self._forked:
            raise ForkedLinkError(f"{where} was opened before a fork; open a new client or server here")
        if self._closed:
            raise LinkClosed(f"{where} is closed")
        raise WrongThreadError(f"{where} belongs to thread {self.owner}; hand it over by setting link.owner")

    def _ending(self) -> bool:
        """Mark the link closed; True the first time, unless this process inherited it by fork."""
        first = not self._closed
        self._closed = True
        return first and not self._forked

    def after_fork(self) -> None:
        """Called in a forked child: from now on the link only refuses."""
        self._forked = True


class Waker:
    """Ends a `Link.wait` from another thread. Safe to call from any thread and from signal handlers."""

    def __init__(self) -> None:
        self._reader, self._writer = os.pipe()
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable once woken."""
        return self._reader

    def wake(self) -> None:
        """Make the descriptor readable until `clear`."""
        try:
            os.write(self._writer, b"\0")
        except (BlockingIOError, OSError):
            return  # full: already woken; closed: nobody waits any more

    def clear(self) -> None:
        """Forget all wakes so far."""
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except BlockingIOError:
            return

    def close(self) -> None:
        """Give the descriptors back. Only when no other thread can wake or wait any more."""
        descriptors = {self._reader, self._writer} - {-1}
        self._reader = self._writer = -1
        for descriptor in descriptors:
            os.close(descriptor)
