"""Connection: a client's life: opened at first use, closed once all is delivered, pickled, and begun anew in a fork."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Final, Self

from remit.codec import Codec, find_codec
from remit.config import resolve
from remit.ends.inbound import Urgent
from remit.ends.leaving import forget, keep, remember
from remit.ends.opened import ticked_here
from remit.ends.runtime import Runtime
from remit.errors import LinkClosed, Undelivered, WouldDeadlock
from remit.keyed import signing
from remit.listeners import Listening, OnError
from remit.location import Location
from remit.plugins import find_transport
from remit.settings import settle

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["SETTLE", "Connection"]

SETTLE: Final = 0.25
"""Seconds that a wait for a server ticked by this very thread may take: acknowledgements may be under way."""


class Connection(Listening):
    """Base of `Client`: all of it but what it does."""

    def __init__(
        self,
        location: str | Location | None,
        given: Mapping[str, Any],
        *,
        codec: str | Codec | None,
        threaded: bool,
        on_error: OnError | None,
    ) -> None:
        super().__init__(on_error)
        self._given = given
        self._codec = codec
        self._threaded = threaded
        self._location = resolve(location)
        transport = find_transport(self._location.scheme)
        named = codec if isinstance(codec, str) else None
        self._settings, self._bare = settle(self._location, transport.options, {**given, "codec": named})
        self._spoken()
        self._transport = signing(transport, self._settings.key)
        self._runtime: Runtime | None = None
        self._closed = False
        self.urgent: dict[str, Urgent] = {}
        """What takes events of Remit's own on the thread that serves the connection, by name."""

    @property
    def location(self) -> Location:
        """Where the server is reached."""
        return self._location

    @property
    def linger(self) -> float:
        """Seconds that `close` waits unless told otherwise."""
        return self._settings.linger

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self._runtime is not None and self._runtime.connected

    def stats(self) -> dict[str, int]:
        """Return counters: what waits, what is under way, what was dropped, refused or repeated."""
        counters = {"dispatched": self._dispatched, "listener_errors": self._errors, "unheard": self._unheard}
        return counters | (self._runtime.stats() if self._runtime else {})

    def close(self, linger: float | None = None) -> None:
        """Wait up to ``linger`` seconds until all is confirmed, then end. May be called twice.

        Raises Undelivered, which names what was not confirmed.
        """
        runtime, self._runtime = self._runtime, None
        self._closed = True
        forget(self)
        if runtime is None:
            return
        bound = self._settings.linger if linger is None else linger
        here = ticked_here(self._location)
        drained = runtime.drain(min(SETTLE, bound) if here else bound, quiet=True)
        left = runtime.close(bound)
        if left is None:
            return
        if here and not drained:
            raise left from WouldDeadlock("this thread ticks the server itself: tick it before closing the client")
        raise left

    def __enter__(self) -> Self:
        if self._runtime is None:
            self._open()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            self.close()
        except Undelivered as lost:
            if error is None:
                raise
            error.add_note(f"and while leaving the client: {lost}")

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (type(self), self._location, self._codec, self._threaded, self._given)

    def __repr__(self) -> str:
        state = "closed" if self._closed else "connected" if self.connected else "not connected"
        return f"<Client {self._location} {state}>"

    def _open(self) -> Runtime:
        if self._closed:
            raise LinkClosed(f"the client to {self._location} is closed")
        hear = weakref.WeakMethod(self._dispatch)
        runtime = Runtime(
            self._transport,
            self._bare,
            self._settings,
            codec=None if isinstance(self._codec, str) else self._codec,
            threaded=self._threaded,
            dispatch=hear,
        )
        runtime.urgent.update(self.urgent)
        self._runtime = runtime
        remember(self)
        if self._threaded:
            keep(self)
        return runtime

    @property
    def crowded(self) -> bool:
        """Whether `emit` may have to wait for room."""
        gate = (self._runtime or self._open()).gate
        return len(gate.pending) >= gate.capacity

    def never_wait_here(self) -> None:
        """Let nothing wait for room in the calling thread, an event loop's: what would have to raises `NoRoom`."""
        (self._runtime or self._open()).gate.loop = threading.get_ident()

    def answers_within(self, seconds: float) -> None:
        """Let an acknowledgement wait so long for an event to leave with. For whoever ticks a client without a thread.

        It saves the server two ticks where what is heard is soon answered; one that is late leaves in the next tick.
        """
        (self._runtime or self._open()).answers_within(seconds)

    def beat(self, seconds: float) -> None:
        """From now on ask after this many seconds of silence whether the server is there."""
        (self._runtime or self._open()).beat(seconds)

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard; infinity before the first time."""
        return float("inf") if self._runtime is None else self._runtime.silence

    def _spoken(self) -> Codec:
        return find_codec(self._settings.codec) if self._codec is None else find_codec(self._codec)

    def _after_fork(self) -> None:
        """In a forked child: begin anew at the next use; what the parent has under way is the parent's."""
        self._renew_lock()
        runtime, self._runtime = self._runtime, None
        if runtime is not None:
            runtime.abandon()


def _rebuild(
    kind: type[Connection], location: Location, codec: str | Codec | None, threaded: bool, given: dict[str, Any]
) -> Connection:
    return kind(location, codec=codec, threaded=threaded, **given)
