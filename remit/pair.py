"""Pair: exactly two, who signal each other; a third is refused."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

import msgspec

from remit.answering import session_of
from remit.client import Client
from remit.codec import Wire
from remit.errors import EmitError, LinkClosed, PairBusy, PeerLost, RequestFailed, SignalTimeout
from remit.inbound import RENEWED
from remit.location import Location
from remit.protocol.pairing import Seat
from remit.protocol.session import Session
from remit.sender import Sender
from remit.server import Server

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["Pair"]

LEASE: Final = 5.0
"""Seconds of silence after which the other one is taken for dead."""
BEATS: Final = 4
"""How often within a lease each lets the other hear of it."""
LOOK: Final = 0.1
"""Seconds between two looks whether the other one still lives."""
TIMEOUT: Final = 30.0
"""Seconds that joining, and a signal to somebody who has not come yet, wait unless told otherwise."""
FOREVER: Final = float("inf")
JOIN: Final = "remit.pair"
"""A request to be the other one: the seconds of its lease. Answered with the epoch."""
SIGNAL: Final = "remit.signal"
"""A signal: epoch, value."""
PARTED: Final = "remit.parted"
"""An event to one who is no longer, or was never, the other one: epoch."""


class _End(Protocol):
    @property
    def location(self) -> Location: ...

    def signal(self, value: Any, deadline: float) -> None: ...

    def gone(self) -> str: ...

    def close(self) -> None: ...


class Pair:
    """One of two that signal each other, in either direction. Made by `bind` and `connect`; its own thread listens.

    A signal arrives once and in order, or whoever sends or waits next is told that the other one is lost: at once when
    it was closed, after the lease when it died. The bound one may then be joined by somebody new.
    """

    def __init__(self, end: _End, signals: queue.SimpleQueue[Any]) -> None:
        self._end = end
        self._signals = signals
        self._closed = False

    @classmethod
    def bind(cls, location: str | Location | None = None, *, lease: float = LEASE, **options: Any) -> Pair:
        """Open a location and be joined by one other. ``options`` are those of `Server`.

        Raises LocationInUse and what `Server` raises.
        """
        signals: queue.SimpleQueue[Any] = queue.SimpleQueue()
        return cls(_Bound(Server(location, **options), lease, signals), signals)

    @classmethod
    def connect(
        cls, location: str | Location | None = None, *, lease: float = LEASE, timeout: float = TIMEOUT, **options: Any
    ) -> Pair:
        """Join the one who bound the location. ``options`` are those of `Client`.

        Raises PairBusy if somebody has, RequestTimeout, and as `Client`.
        """
        signals: queue.SimpleQueue[Any] = queue.SimpleQueue()
        return cls(_Joined(Client(location, **options), lease, timeout, signals), signals)

    @property
    def location(self) -> Location:
        """Where the two meet."""
        return self._end.location

    def signal(self, value: Any = None, *, timeout: float = TIMEOUT) -> None:
        """Signal the other one, with a value if you like; wait for it to join for up to ``timeout`` seconds.

        Raises PeerLost, SignalTimeout, LinkClosed, CodecError, EmitError.
        """
        self._check_open()
        self._end.signal(value, time.monotonic() + timeout)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the next signal and return its value. Raises SignalTimeout, PeerLost, LinkClosed."""
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        while True:
            self._check_open()
            try:
                signal = self._signals.get(timeout=max(0.0, min(LOOK, deadline - time.monotonic())))
            except queue.Empty:
                why = self._end.gone()
                if why:
                    raise PeerLost(why) from None
                if time.monotonic() >= deadline:
                    raise SignalTimeout(f"no signal within {timeout} s") from None
                continue
            if isinstance(signal, PeerLost):
                raise signal
            return signal[0]

    def close(self) -> None:
        """Part from the other one, who is told. May be called twice. Raises Undelivered."""
        if not self._closed:
            self._closed = True
            self._end.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkClosed("this pair was closed")


class _Bound:
    """The end that owns the seat."""

    def __init__(self, server: Server, lease: float, signals: queue.SimpleQueue[Any]) -> None:
        self._signals = signals
        self._seat = Seat(lease=lease)
        self._seated = threading.Condition()
        self._server = server
        self._server.answering.services[JOIN] = self._join
        self._server.controls[SIGNAL] = self._signalled
        self._server.forgetters.append(self._left)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="remit-pair", daemon=True)
        self._thread.start()

    @property
    def location(self) -> Location:
        return self._server.location

    def signal(self, value: Any, deadline: float) -> None:
        with self._seated:
            while self._seat.holder is None:
                left = deadline - time.monotonic()
                if left <= 0:
                    raise SignalTimeout(f"nobody has joined {self.location}")
                self._seated.wait(left)
            holder: Any = self._seat.holder
        try:
            self._server.post(holder, SIGNAL, (self._seat.epoch, value))
        except EmitError as error:
            raise PeerLost(f"the other one has left: {error}") from error

    def gone(self) -> str:
        return ""  # Whoever is lost is told by the queue, in its place.

    def close(self) -> None:
        holder: Any = self._seat.holder
        with contextlib.suppress(EmitError):  # It has left just now.
            if holder is not None:
                self._server.post(holder, PARTED, (self._seat.epoch,))
        self._stopping.set()
        self._server.stop()
        self._thread.join(TIMEOUT)
        self._server.close()

    def _run(self) -> None:
        while not self._stopping.is_set():
            self._server.tick()
            holder: Any = self._seat.holder
            if holder is not None and self._seat.lapsed(time.monotonic() - holder.heard):
                self._server.post(holder, PARTED, (self._seat.epoch,))  # should it ever come back
                self._left(holder)
            self._server.wait(LOOK)

    def _join(self, session: Session, lease: float) -> tuple[int, float]:
        epoch = self._seat.claim(session)
        if epoch is None:
            raise PairBusy(f"two have met at {self.location} already")
        with self._seated:
            self._seated.notify_all()
        return epoch, float(lease)

    def _signalled(self, wire: Wire, sender: Sender | None, _: bool) -> None:
        session = session_of(sender)
        epoch, value = msgspec.convert(wire.args, tuple[int, Any])
        if self._seat.holds(session, epoch):
            self._signals.put((value,))
        else:
            self._server.post(session, PARTED, (epoch,))

    def _left(self, session: Session) -> None:
        if self._seat.free(session):
            self._signals.put(PeerLost("the other one has left, or is dead"))


class _Joined:
    """The end that takes the seat."""

    def __init__(self, client: Client, lease: float, timeout: float, signals: queue.SimpleQueue[Any]) -> None:
        self._signals = signals
        self._lease = lease
        self._lost = ""
        self._client = client
        self._client.controls[SIGNAL] = self._signalled
        self._client.controls[PARTED] = lambda wire, *_: self._parted(*wire.args)
        self._client.controls[RENEWED] = lambda *_: self._lose("the other one has begun anew")
        self._epoch = 0
        try:
            self._epoch, _ = self._client.request(JOIN, lease, timeout=timeout, idempotent=True)
        except RequestFailed as error:
            self._client.close(0.0)
            if error.type_name.endswith("PairBusy"):
                raise PairBusy(error.message) from None
            raise
        except BaseException:
            self._client.close(0.0)
            raise
        self._client.beat(lease / BEATS)

    @property
    def location(self) -> Location:
        return self._client.location

    def signal(self, value: Any, deadline: float) -> None:
        why = self.gone()
        if why:
            raise PeerLost(why)
        self._client.emit(SIGNAL, self._epoch, value)

    def gone(self) -> str:
        if not self._lost and self._client.silence > self._lease:
            self._lost = f"nothing was heard of the other one for {self._lease} s"
        return self._lost

    def close(self) -> None:
        self._client.close(0.0 if self._lost else None)

    def _signalled(self, wire: Wire, *_: Any) -> None:
        epoch, value = msgspec.convert(wire.args, tuple[int, Any])
        if epoch == self._epoch or not self._epoch:
            self._signals.put((value,))

    def _parted(self, epoch: int) -> None:
        if epoch == self._epoch:
            self._lose("the other one has left, or has taken us for dead")

    def _lose(self, why: str) -> None:
        self._lost = why
        self._signals.put(PeerLost(why))
