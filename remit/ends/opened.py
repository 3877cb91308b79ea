"""Opened: a server's life: it opens its location, is closed, pickled, inherited by a fork; and who ticks it."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Self

from remit.config import resolve
from remit.endpoint import ServerEndpoint
from remit.ends.keeping import PATIENCE, Keeping
from remit.ends.wayback import Turns, WayBack
from remit.errors import LinkClosed
from remit.keyed import count_with, signing
from remit.listeners import Listening, OnError
from remit.location import Location
from remit.plugins import find_transport
from remit.protocol.acceptor import Acceptor
from remit.settings import settle

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Opened", "ticked_here"]

# Plain references, no WeakSet: every request looks here, and that one's own code would take longer than the look.
_servers: set[weakref.ref[Opened]] = set()


class Opened(Listening):
    """Base of `Server`: all of it but what it does."""

    keeping: Keeping

    def __init__(
        self,
        location: str | Location | None,
        given: dict[str, Any],
        *,
        on_error: OnError | None,
        threaded: bool,
    ) -> None:
        super().__init__(on_error)
        self._given = given
        self._threaded = threaded
        self._asked = resolve(location)
        self._endpoint: ServerEndpoint | None = None
        self._location = self._asked
        self._ended = False
        self._turns = Turns()
        # Weakly: a sender that somebody keeps does not keep the server.
        reach = weakref.WeakMethod(self._reach)
        self._way_back = WayBack(lambda: _called(reach), self._turns)
        if not _unpickling.active:
            self._open()

    def _open(self) -> ServerEndpoint:
        transport = find_transport(self._asked.scheme)
        self._settings, bare = settle(self._asked, transport.options, self._given)
        transport = signing(transport, self._settings.key)
        link = transport.bind(bare)
        self._location = link.location.replace(options=self._asked.options)
        self._way_back.limit(self._settings, link.capabilities)
        machine = Acceptor(
            self._way_back.outbox,
            max_frame=link.capabilities.max_frame,
            patience=PATIENCE if self._threaded else 0.0,
            session_ttl=self._settings.session_ttl,
            sees_peers=link.capabilities.sees_peers,
        )
        count_with(transport, machine)
        self._endpoint = ServerEndpoint(machine, link)
        self.keeping = self._way_back.keeping = Keeping(self._endpoint, threaded=self._threaded)
        self._way_back.endpoint = self._endpoint
        _servers.add(weakref.ref(self, _servers.discard))
        return self._endpoint

    def _reach(self) -> ServerEndpoint:
        if self._ended:
            raise LinkClosed(f"the server on {self._location} is closed")
        return self._open()  # it came here pickled, and opens where it is first used

    @property
    def location(self) -> Location:
        """Where clients reach this server, with the port that the system chose."""
        if self._endpoint is None and not self._ended:
            self._open()
        return self._location

    @property
    def is_open(self) -> bool:
        """Whether it has a location open."""
        return self._endpoint is not None

    def close(self, linger: float | None = None) -> None:
        """Confirm what was handled, tell the clients, and end within ``linger`` seconds. May be called twice.

        Events that arrived but were not dispatched are not confirmed: the clients keep them for the next server.
        """
        endpoint, self._endpoint = self._endpoint, None
        self._way_back.endpoint = None
        self._ended = True
        if endpoint is None:
            return
        _servers.discard(weakref.ref(self))
        self.keeping.close(self._settings.linger if linger is None else linger)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (type(self), self._asked, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "open" if self._endpoint else "closed" if self._ended else "not opened yet"
        return f"<Server {self._asked} {state}>"

    def _after_fork(self) -> None:
        """A forked child holds a copy that only refuses; its locks may be held by threads that are not here."""
        self._renew_lock()
        self._turns.lock = threading.Lock()
        self._turns.thread = 0  # Whoever ticked did so in the parent, although a thread here has the same ident.
        if self._endpoint is not None:
            self.keeping.after_fork()


def ticked_here(location: Location) -> bool:
    """Whether the calling thread is the one that ticks a server on this location."""
    if not _servers:
        return False
    here = threading.get_ident()
    return any(server._turns.thread == here and server.location == location for server in _living())


def _called(reach: weakref.WeakMethod[Callable[[], ServerEndpoint]]) -> ServerEndpoint:
    method = reach()
    if method is None:
        raise LinkClosed("the server is closed")
    return method()


class _Unpickling(threading.local):
    active = False


_unpickling = _Unpickling()


def _reopen(kind: type[Opened], location: Location, threaded: bool, given: dict[str, Any]) -> Opened:
    """Rebuild a pickled server; it opens its location when it is first used."""
    _unpickling.active = True
    try:
        return kind(location, threaded=threaded, **given)
    finally:
        _unpickling.active = False


def _living() -> list[Opened]:
    return [server for each in tuple(_servers) if (server := each()) is not None]


def _after_fork_in_child() -> None:
    for server in _living():
        server._after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
