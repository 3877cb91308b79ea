"""Transport between the threads of one process: `memory:`. It is the simplest implementation of the contract."""

from __future__ import annotations

import contextlib
import itertools
import select
import threading
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, Final

from remit.errors import BadLocation, LocationInUse
from remit.location import Location, read_count, read_size
from remit.transport import (
    MAX_WAIT_S,
    SERVER,
    Arrival,
    Capabilities,
    Down,
    Frame,
    OwnedLink,
    Peer,
    Sent,
    Transport,
    Up,
    Wakeable,
    Waker,
    hookimpl,
    register_after_fork,
)

MAX_FRAME: Final = 16 * 1024 * 1024
"""Default of the option ``max_frame``, in bytes."""
CAPACITY_FRAMES: Final = 1024
"""Default of the option ``capacity``: frames queued in one direction of a connection."""

_TOKENS = itertools.count(1)
_ACCEPTED: Final = Sent.ACCEPTED  # Each access through the class costs 70 ns on CPython 3.11.
_HUBS: dict[str, _Hub] = {}
_lock = threading.RLock()
"""Guards all state that two links share. One lock is enough: it is held for less than a microsecond."""


class _Hub:
    """The server and the clients of one name."""

    def __init__(self) -> None:
        self.server: MemoryLink | None = None
        self.clients: dict[MemoryLink, None] = {}


class _Route:
    """One direction of a connection. ``theirs`` is the peer token of ``target``, ``ours`` that of ``source``."""

    def __init__(self, source: MemoryLink, target: MemoryLink, *, ours: Peer, theirs: Peer) -> None:
        self.source = source
        self.target = target
        self.ours = ours
        self.theirs = theirs
        self.queued = 0
        self.blocked = False
        self.open = True


class MemoryLink(OwnedLink):
    """One end of a connection, or the server's end of many."""

    def __init__(self, location: Location, capabilities: Capabilities, *, name: str, capacity: int) -> None:
        super().__init__(location, capabilities)
        self.name = name
        self._capacity = capacity
        self.inbox: deque[tuple[Arrival, _Route | None]] = deque()
        self._routes: dict[Peer, _Route] = {}
        self._connections: dict[MemoryLink, _Route] = {}
        self._waker = Waker()
        self._poller = select.poll()
        self._poller.register(self._waker.fileno(), select.POLLIN)
        self._polled = -1
        """Descriptor of the caller's waker that is registered; -1 without one."""
        self._waiting = False
        self._writable = False

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Send one frame. Never blocks. Raises FrameTooLarge."""
        self._check(frame)
        with _lock:
            route = self._routes.get(peer)
            if route is None:
                return Sent.GONE
            if route.queued >= self._capacity:
                route.blocked = True
                return Sent.FULL
            # Copied, as other transports do: the caller may reuse a mutable buffer.
            route.target.enqueue(Frame(route.ours, bytes(frame)), route)
            # Afterwards, and below before the removal: an interrupt in between leaves more room, not less.
            route.queued += 1
        return _ACCEPTED

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None. Never blocks."""
        self._check()
        # Without the lock: only the owner removes arrivals, and an idle tick must stay cheap.
        if not self.inbox:
            return None
        with _lock:
            arrival, route = self.inbox[0]
            if route is not None:
                self._count_received(arrival, route)
            self.inbox.popleft()
        return arrival

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds for an arrival, room to send, or ``waker``."""
        self._check()
        with _lock:
            if self.inbox or self._writable:
                self._writable = False
                return
            # Set under the lock that `enqueue` needs: an arrival from now on wakes the poll below.
            self._waiting = True
        try:
            descriptor = -1 if waker is None else waker.fileno()
            if descriptor != self._polled:
                self._poll_waker(descriptor)
            self._poller.poll(max(0.0, min(timeout, MAX_WAIT_S)) * 1000)
        finally:
            with _lock:
                self._waiting = self._writable = False
                self._waker.clear()

    def _poll_waker(self, descriptor: int) -> None:
        if self._polled >= 0:
            with contextlib.suppress(KeyError):  # An interrupt came between these lines.
                self._poller.unregister(self._polled)
        if descriptor >= 0:
            self._poller.register(descriptor, select.POLLIN)
        self._polled = descriptor

    def close(self, linger: float) -> None:
        """Close the link immediately: accepted frames are in the other end's inbox already."""
        if not self._closed and not self._forked:
            try:
                with _lock:
                    if self.name in _HUBS:
                        self._leave_hub(_HUBS[self.name])
                    self._closed = True
            except BaseException:
                self.recover()
                raise
        self._waker.close()

    def recover(self) -> bool:
        """Release the lock."""
        while _lock._is_owned():  # type: ignore[attr-defined]
            _lock.release()
        return True

    # -- called with the lock held -------------------------------------------------------------------------------

    def enqueue(self, arrival: Arrival, route: _Route | None = None) -> None:
        """Add an arrival to the inbox and end a `wait` that is in progress."""
        self.inbox.append((arrival, route))
        if self._waiting:
            self._waker.wake()

    def _count_received(self, arrival: Arrival, route: _Route) -> None:
        if isinstance(arrival, Up):
            # The route opens only now, so a frame meant for a former connection cannot take it.
            if route.open:
                self._routes[route.theirs] = route
            return
        route.queued -= 1
        if route.blocked:
            route.blocked = False
            route.source._writable = True
            if route.source._waiting:
                route.source._waker.wake()

    def serve(self, hub: _Hub) -> None:
        """Become the server of a name. Raises LocationInUse."""
        if hub.server is not None:
            raise LocationInUse(
                f"{self.location} has a server already in this process; close it or choose another name"
            )
        hub.server = self
        for client in hub.clients:
            self._connect_client(client)

    def join(self, hub: _Hub) -> None:
        """Become a client of a name."""
        hub.clients[self] = None
        if hub.server is not None:
            hub.server._connect_client(self)

    def _connect_client(self, client: MemoryLink) -> None:
        token = next(_TOKENS)
        self.add_route(_Route(self, client, ours=SERVER, theirs=token))
        client.add_route(_Route(client, self, ours=token, theirs=SERVER))

    def add_route(self, route: _Route) -> None:
        """Announce a peer that can be reached over ``route``."""
        self._connections[route.target] = route
        self.enqueue(Up(route.theirs), route)

    def _leave_hub(self, hub: _Hub) -> None:
        if hub.server is self:
            for client in hub.clients:
                client.disconnect(self)
            hub.server = None
        else:
            hub.clients.pop(self, None)
            if hub.server is not None:
                hub.server.disconnect(self)
        if hub.server is None and not hub.clients:
            del _HUBS[self.name]

    def disconnect(self, other: MemoryLink) -> None:
        """End the connection with a link that is being closed."""
        route = self._connections.pop(other, None)
        if route is None:  # An interrupted close() is repeated.
            return
        route.open = False
        self._routes.pop(route.theirs, None)
        self.enqueue(Down(route.theirs, "the other end closed its link"))


class MemoryTransport:
    """``memory://name``: one server and its clients, in any threads of one process."""

    capabilities = Capabilities(max_frame=MAX_FRAME, crosses_processes=False)
    options: Mapping[str, Callable[[str], Any]] = {"max_frame": read_size, "capacity": read_count}

    def bind(self, location: Location) -> MemoryLink:
        """Open the server's link. Raises LocationInUse, BadLocation."""
        return self._enter(self._link(location), MemoryLink.serve)

    def connect(self, location: Location) -> MemoryLink:
        """Open the client's link. The server may start later. Raises BadLocation."""
        return self._enter(self._link(location), MemoryLink.join)

    def _enter(self, link: MemoryLink, enter: Callable[[MemoryLink, _Hub], None]) -> MemoryLink:
        try:
            with _lock:
                enter(link, _HUBS.setdefault(link.name, _Hub()))
                return link
        except BaseException:
            link.recover()
            link.close(0.0)
            raise

    def _link(self, location: Location) -> MemoryLink:
        options = location.read(self.options)
        name = location.host + location.path
        if not name:
            raise BadLocation(f"{location} has no name: write, for example, memory://events")
        capabilities = replace(self.capabilities, max_frame=options.get("max_frame", MAX_FRAME))
        return MemoryLink(location, capabilities, name=name, capacity=options.get("capacity", CAPACITY_FRAMES))


def _after_fork_in_child() -> None:
    """Drop the parent's hubs, and replace the lock, which another thread of the parent may have held."""
    global _lock
    _lock = threading.RLock()
    _HUBS.clear()


register_after_fork(_after_fork_in_child)

_TRANSPORT: Final = MemoryTransport()


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport of ``memory:``."""
    return _TRANSPORT if scheme == "memory" else None
