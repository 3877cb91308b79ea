"""A pair of exactly two members that signal each other."""

from __future__ import annotations

import contextlib
import queue
import threading
import time
from collections import deque
from collections.abc import Callable
from itertools import starmap
from typing import Any, Final

from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._patterns.names import PAIR_JOIN
from remit.client import Client
from remit.errors import LinkClosed, NoListener, PairBusy, PeerLost, RequestFailed, SignalTimeout
from remit.location import Location
from remit.options import check_seconds
from remit.server import Server

__all__ = ["Pair"]

LEASE_S: Final = 5.0
"""Seconds of silence after which the other member is considered dead."""
HEARTBEATS_PER_LEASE: Final = 4
LEASE_CHECK_INTERVAL_S: Final = 0.1
JOIN_TIMEOUT_S: Final = 30.0
"""Default timeout of joining, and of a signal before the other member has joined."""
CLOSE_TIMEOUT_S: Final = 30.0
FOREVER: Final = float("inf")


class Pair:
    """One of two members that signal each other in both directions. Create it with `bind` or `connect`.

    A signal arrives exactly once and in order, or the next `signal` or `wait` raises PeerLost: immediately if the other
    member was closed, after the lease if it died. Then a new member may join the bound one.
    """

    def __init__(self, member: _BoundMember | _JoinedMember, signals: queue.SimpleQueue[Any]) -> None:
        self._member = member
        self._signals = signals
        self._taken: deque[Any] = deque()
        """The signal that `wait` is about to return."""
        self._closed = self._left = False

    @classmethod
    def bind(cls, location: str | Location | None = None, *, lease: float = LEASE_S, **options: Any) -> Pair:
        """Open a location that one other member can join. ``options`` are those of `Server`.

        Raises LocationInUse and what `Server` raises.
        """
        check_seconds("lease", lease, above_zero=True)
        return cls._create(lambda signals: _BoundMember(location, options, lease, signals))

    @classmethod
    def connect(
        cls,
        location: str | Location | None = None,
        *,
        lease: float = LEASE_S,
        timeout: float = JOIN_TIMEOUT_S,
        **options: Any,
    ) -> Pair:
        """Join the member that has bound a location. ``options`` are those of `Client`.

        Raises PairBusy if a member has joined already, RequestTimeout, NoListener if the server is not a pair, and what
        `Client` raises.
        """
        check_seconds("lease", lease, above_zero=True)
        return cls._create(lambda signals: _JoinedMember(Client(location, **options), lease, timeout, signals))

    @classmethod
    def _create(cls, join: Callable[[queue.SimpleQueue[Any]], _BoundMember | _JoinedMember]) -> Pair:
        signals: queue.SimpleQueue[Any] = queue.SimpleQueue()
        member = None
        try:
            member = join(signals)
            return cls(member, signals)
        except BaseException:
            if member is not None:
                member.close()
            raise

    @property
    def location(self) -> Location:
        """The location that was bound."""
        return self._member.end.location

    def signal(self, value: Any = None, *, timeout: float = JOIN_TIMEOUT_S) -> None:
        """Signal the other member, with an optional value; wait up to ``timeout`` seconds for it to join.

        Raises PeerLost, SignalTimeout, LinkClosed, CodecError, EmitError.
        """
        self._check_open()
        self._member.signal(value, time.monotonic() + timeout)

    def wait(self, timeout: float | None = None) -> Any:
        """Wait for the next signal and return its value. Raises SignalTimeout, PeerLost, LinkClosed."""
        deadline = FOREVER if timeout is None else time.monotonic() + timeout
        while True:
            self._check_open()
            try:
                # Short waits, because a silent member puts no PeerLost into the queue: `lost_reason` detects it.
                left = max(0.0, min(LEASE_CHECK_INTERVAL_S, deadline - time.monotonic()))
                if not self._taken:
                    with contextlib.suppress(queue.Empty):  # As in `next_item`.
                        self._taken.extend(starmap(self._signals.get_nowait, ((),)))
                if not self._taken:
                    self._taken.extend(starmap(self._signals.get, ((True, left),)))  # In C: no signal handler runs.
            except queue.Empty:
                why = self._member.lost_reason()
                if why:
                    raise PeerLost(why) from None
                if time.monotonic() >= deadline:
                    raise SignalTimeout(f"no signal within {timeout} s") from None
                continue
            # Removed last: after an interrupt the next call returns the signal.
            if isinstance(self._taken[0], PeerLost):
                raise self._taken.popleft()
            return self._taken.popleft()[0]

    def close(self) -> None:
        """Leave the pair; the other member gets PeerLost. May be called twice. Raises Undelivered."""
        self._closed = True
        if not self._left:
            self._member.close()
            self._left = True  # Afterwards: a close that was interrupted is completed by the next.

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _check_open(self) -> None:
        if self._closed:
            raise LinkClosed("this pair was closed")


class _BoundMember:
    """The member that has bound the location. Its own thread ticks the server."""

    def __init__(
        self, location: str | Location | None, options: dict[str, Any], lease: float, signals: queue.SimpleQueue[Any]
    ) -> None:
        self._stopping = threading.Event()
        self._broken = ""
        """Why the thread has ended; empty while it runs."""
        server = None
        try:
            self.end = server = Server(location, **options)
            self._pair = PairServer(server._router, server._post, signals.put, lease=lease)
            self._thread = threading.Thread(target=self._run, name="remit-pair", daemon=True)
            self._thread.start()
        except BaseException:
            self._stopping.set()
            if server is not None:
                server.close(0.0)
            raise

    def signal(self, value: Any, deadline: float) -> None:
        if self._broken:
            raise PeerLost(self._broken)
        if not self._pair.wait_for_member(deadline):
            raise SignalTimeout(f"no other member has joined {self.end.location}")
        self._pair.signal(value)

    def lost_reason(self) -> str:
        # The loss of the other member is not returned here: it is in the queue, behind its last signals.
        return self._broken

    def close(self) -> None:
        self._pair.leave()
        self._stopping.set()
        self.end.wake()  # After the flag, which the thread reads when it wakes.
        self._thread.join(CLOSE_TIMEOUT_S)
        self.end.close()

    def _run(self) -> None:
        try:
            while not self._stopping.is_set():
                self.end.tick()
                self._pair.advance(self.end._drained_at)
                self.end.wait(LEASE_CHECK_INTERVAL_S)
        except Exception as error:  # noqa: BLE001 - any error is reported to the threads that wait
            self._broken = f"{self.end.location} is lost: {error}"


class _JoinedMember:
    """The member that has joined."""

    def __init__(self, client: Client, lease: float, timeout: float, signals: queue.SimpleQueue[Any]) -> None:
        self.end = client
        self._pair = PairClient(self.end._router, self.end, signals.put, lease=lease)
        try:
            lease = self._pair.on_joined(self.end.request(PAIR_JOIN, lease, timeout=timeout, idempotent=True))
            self.end._set_heartbeat(lease / HEARTBEATS_PER_LEASE)
        except BaseException as error:
            self.end.close(0.0)
            if isinstance(error, NoListener):
                why = f"the server on {self.end.location} is not a pair: create one there with Pair.bind(...)"
                raise NoListener(why) from None
            if isinstance(error, RequestFailed) and error.type_name.endswith("PairBusy"):
                raise PairBusy(error.message) from None
            raise

    def signal(self, value: Any, deadline: float) -> None:
        self._pair.signal(value)

    def lost_reason(self) -> str:
        return self._pair.lost_reason()

    def close(self) -> None:
        self.end.close(0.0 if self._pair.ended else None)
