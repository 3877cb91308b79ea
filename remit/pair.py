"""Pair: exactly two, who signal each other; a third is refused."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any, Final, Protocol

from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._patterns.names import PAIR_JOIN
from remit.client import Client
from remit.errors import LinkClosed, NoListener, PairBusy, PeerLost, RequestFailed, SignalTimeout
from remit.location import Location
from remit.options import check_seconds
from remit.server import Server

if TYPE_CHECKING:
    pass

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
        check_seconds("lease", lease, above_zero=True)
        signals: queue.SimpleQueue[Any] = queue.SimpleQueue()
        return cls(_Bound(Server(location, **options), lease, signals), signals)

    @classmethod
    def connect(
        cls, location: str | Location | None = None, *, lease: float = LEASE, timeout: float = TIMEOUT, **options: Any
    ) -> Pair:
        """Join the one who bound the location. ``options`` are those of `Client`.

        Raises PairBusy if somebody has, RequestTimeout, NoListener where a server is no pair, and as `Client`.
        """
        check_seconds("lease", lease, above_zero=True)
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

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkClosed("this pair was closed")


class _Bound:
    """The end that owns the seat."""

    def __init__(self, server: Server, lease: float, signals: queue.SimpleQueue[Any]) -> None:
        self._server = server
        self._owner = PairServer(self._server._router, self._server._post, signals.put, lease=lease)
        self._stopping = threading.Event()
        self._broken = ""
        """Why nobody listens here any more; empty while somebody does."""
        self._thread = threading.Thread(target=self._run, name="remit-pair", daemon=True)
        self._thread.start()

    @property
    def location(self) -> Location:
        return self._server.location

    def signal(self, value: Any, deadline: float) -> None:
        if self._broken:
            raise PeerLost(self._broken)
        if not self._owner.wait_for_member(deadline):
            raise SignalTimeout(f"nobody has joined {self.location}")
        self._owner.signal(value)

    def gone(self) -> str:
        return self._broken  # A guest that is lost is told by the queue, in its place.

    def close(self) -> None:
        self._owner.leave()
        self._stopping.set()
        self._server.wake()
        self._thread.join(TIMEOUT)
        self._server.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self._server.tick()
                self._owner.advance(self._server._drained_at)
                self._server.wait(LOOK)
        except Exception as error:  # noqa: BLE001 - whatever it is, whoever waits has to know
            self._broken = f"{self.location} is lost: {error}"


class _Joined:
    """The end that takes the seat."""

    def __init__(self, client: Client, lease: float, timeout: float, signals: queue.SimpleQueue[Any]) -> None:
        self._client = client
        self._guest = PairClient(self._client._router, self._client, signals.put, lease=lease)
        try:
            shortest = self._guest.on_joined(self._client.request(PAIR_JOIN, lease, timeout=timeout, idempotent=True))
        except RequestFailed as error:
            self._client.close(0.0)
            if error.type_name.endswith("PairBusy"):
                raise PairBusy(error.message) from None
            raise
        except NoListener:
            self._client.close(0.0)
            raise NoListener(f"the server on {self.location} is no Pair: begin one there with Pair.bind(...)") from None
        except BaseException:
            self._client.close(0.0)
            raise
        self._client._set_heartbeat(shortest / BEATS)

    @property
    def location(self) -> Location:
        return self._client.location

    def signal(self, value: Any, deadline: float) -> None:
        self._guest.signal(value)

    def gone(self) -> str:
        return self._guest.lost_reason()

    def close(self) -> None:
        self._client.close(0.0 if self._guest.ended else None)
