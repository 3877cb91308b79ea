"""Both ends of publish and subscribe: the subscriptions of a server's clients, and those of one client."""

from __future__ import annotations

import contextlib
import functools
import itertools
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from operator import itemgetter
from typing import Any, Final

import msgspec

from remit._patterns.names import PUBLISHED, UNSUBSCRIBED
from remit._protocol.outbox import BATCH_BYTES, BATCH_EVENTS, HEAD_BYTES
from remit._protocol.session import Session
from remit._protocol.subscriptions import POLICIES, SubscriberQueue
from remit._typed_listeners import bind, conversion
from remit.codec import Codec, EventMessage, decode_event, find_codec, shortened
from remit.errors import CodecError, FrameTooLarge, QueueFull
from remit.event import NO_HEADERS
from remit.listeners import NAMES_CACHED, check_listener, check_name, matcher
from remit.options import QUEUE_BYTES, check_choice, check_count, check_seconds

logger = logging.getLogger("remit")

LAST_VALUES_CODEC: Final = find_codec("msgpack")
"""Codec of kept last values: it preserves more types than JSON."""
UNBOUNDED_BYTES: Final = 1 << 62
REFILL_TIMEOUT_S: Final = 0.05
"""Longest wait for a publishing thread before its publications are moved to the outbox later."""


class Publisher:
    """Subscriptions of all clients of one server. ``writable`` is called with each session that gets publications."""

    def __init__(self, writable: Callable[[Session], None], clock: Callable[[], float] = time.monotonic) -> None:
        self.keep_bytes = QUEUE_BYTES
        """Most bytes of kept last values."""
        self.queue_bytes = QUEUE_BYTES
        """Most bytes that one subscription may ask to queue."""
        self.kept_bytes = 0
        """Bytes of the last values, in all encodings."""
        self._writable = writable
        self._clock = clock
        self._subscribers: dict[Session, dict[int, SubscriberQueue]] = {}
        self._matching_cache: dict[str, tuple[tuple[Session, SubscriberQueue], ...]] = {}
        self._last_values: dict[str, dict[Codec, bytes]] = {}
        """Last values by name, encoded when they were published, so later changes of an argument have no effect."""
        self._ended: dict[Session, list[SubscriberQueue]] = {}
        """Subscriptions that the server has ended, until UNSUBSCRIBED is sent for them."""
        self.published = 0
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: replace the lock, which another thread of the parent may hold."""
        # Any thread may publish, while the thread that owns the link moves publications to the outboxes. The lock knows
        # its owner: a signal handler or finalizer that publishes within a call of its own thread leaves the publication
        # in `_incoming`, and that call queues it.
        self._lock = threading.RLock()
        self._incoming: deque[tuple[str, dict[Codec, bytes], bool]] = deque()
        """Publications that are not queued for all subscribers yet: name, encodings, whether to keep them."""

    def _queues(self) -> list[SubscriberQueue]:
        return [one for each in tuple(self._subscribers.values()) for one in tuple(each.values())]

    def __len__(self) -> int:
        return len(self._queues())

    @property
    def dropped(self) -> int:
        """Publications dropped for the present subscribers because they were too slow."""
        return sum(queue.dropped for queue in self._queues())

    @property
    def queued_bytes(self) -> int:
        """Bytes of the publications that wait for subscribers."""
        return sum(queue.bytes for queue in self._queues())

    def subscribe(
        self,
        session: Session,
        identifier: int,
        pattern: str,
        queue: int,
        when_full: str,
        max_lag: float | None,
        last: bool,
        queue_bytes: int = QUEUE_BYTES,
    ) -> None:
        """Handle SUBSCRIBE. With ``last`` the kept last values are sent. Raises TypeError, ValueError."""
        _check_options(queue, when_full, max_lag, queue_bytes)
        check_listener(pattern, self.subscribe)
        if not isinstance(identifier, int):
            raise TypeError(f"id of a subscription must be an integer, not {identifier!r}")
        subscription = SubscriberQueue(
            identifier,
            matcher(pattern),
            queue=queue,
            queue_bytes=min(queue_bytes, self.queue_bytes),
            when_full=when_full,
            max_lag=max_lag,
        )
        # The outbox pulls publications when its window has room. Pushed publications would get sequence numbers, and
        # could no longer be dropped for a slow subscriber.
        session.outbox.refill = functools.partial(self._refill, session)
        self._locked(self._add, session, subscription, last)

    def _add(self, session: Session, subscription: SubscriberQueue, last: bool) -> None:
        # SUBSCRIBE is idempotent and may arrive twice: a running subscription must not restart its numbers.
        subscribers = self._subscribers.setdefault(session, {})
        if subscription.id in subscribers:
            return
        if last:
            now = self._clock()
            for name, encodings in tuple(self._last_values.items()):
                if subscription.matches(name):
                    subscription.enqueue(self._last_value(session.codec, encodings), now)
        subscribers[subscription.id] = subscription
        self._matching_cache = {}
        self._writable(session)

    def unsubscribe(self, session: Session, identifier: int) -> None:
        """End a subscription."""
        self._subscribers.get(session, {}).pop(identifier, None)
        self._matching_cache = {}

    def remove_session(self, session: Session) -> None:
        """End the subscriptions of a session that has ended."""
        self._ended.pop(session, None)
        self._subscribers.pop(session, None)
        self._matching_cache = {}

    def publish(
        self,
        name: str,
        args: Sequence[Any],
        kwargs: Mapping[str, Any],
        headers: Mapping[str, Any] = NO_HEADERS,
        *,
        keep: bool,
        largest: int = UNBOUNDED_BYTES,
    ) -> int:
        """Publish, and return the number of subscribers. Raises CodecError, ValueError, FrameTooLarge (``largest``)."""
        check_name(name)
        matching = self._matching(name)
        codecs = {session.codec for session, _ in matching} | ({LAST_VALUES_CODEC} if keep else set())
        # Encoded once for each codec, not for each subscriber.
        encodings = {codec: _encode(codec, largest, name, args, kwargs, headers) for codec in codecs}
        if keep:
            self._check_kept(name, encodings)
        nested = self._lock._is_owned()  # type: ignore[attr-defined]
        try:
            self._incoming.append((name, encodings, keep))
            self.published += 1
            if not nested:
                self._distribute()
        except BaseException:
            if not nested:
                self._recover()
            raise
        return len(matching)

    def _distribute(self) -> None:
        """Queue the incoming publications for their subscribers: one after the other, so that all see one order."""
        while self._incoming:
            self._lock.acquire()
            self._drain()
            # Then once more: a finalizer may have published before the release.
            self._lock.release()

    def _drain(self) -> None:
        while self._incoming:
            name, encodings, keep = self._incoming[0]
            now = self._clock()
            if keep:
                self.kept_bytes, self._last_values[name] = self._kept_with(name, encodings), encodings
            for session, subscription in self._matching(name):
                publication = encodings.get(session.codec)
                if publication is None and keep:
                    with contextlib.suppress(CodecError):
                        publication = self._last_value(session.codec, encodings)
                if publication is None:
                    continue  # It has subscribed since.
                subscription.enqueue(publication, now)
                if subscription.ended:
                    self._end(session, subscription)
                self._writable(session)
            # Removed afterwards: after an interrupt it is queued again for those who do not have it.
            self._incoming.popleft()

    def _locked(self, action: Callable[..., None], *args: Any, timeout: float = -1.0) -> bool:
        """Call ``action`` while no other thread publishes. Return False if one does for ``timeout`` seconds."""
        if self._lock._is_owned():  # type: ignore[attr-defined]
            action(*args)
            return True
        # Without `with`: a signal handler may raise before its __exit__ releases the lock.
        try:
            if not self._lock.acquire(timeout=timeout):
                return False
            action(*args)
            self._lock.release()
            if self._incoming:
                self._distribute()
            return True
        except BaseException:
            self._recover()
            raise

    def _recover(self) -> None:
        """Release the lock after an exception in the outermost call of this thread, and queue what it has left."""
        while self._lock._is_owned():  # type: ignore[attr-defined]
            self._lock.release()
        for queue in self._queues():
            queue.repair()
        self._distribute()

    def _kept_with(self, name: str, encodings: dict[Codec, bytes]) -> int:
        """Return the bytes of the last values with a new one."""
        return self.kept_bytes + _size(encodings) - _size(self._last_values.get(name, {}))

    def _check_kept(self, name: str, encodings: dict[Codec, bytes]) -> None:
        """Raise QueueFull if a last value does not fit beside the others."""
        if (size := self._kept_with(name, encodings)) > self.keep_bytes:
            raise QueueFull(
                f"{shortened(name)} was not published: kept values would take up {size} bytes, over {self.keep_bytes}; "
                "keep fewer or smaller ones, or raise keep_bytes of the server"
            )

    def _last_value(self, codec: Codec, encodings: dict[Codec, bytes]) -> bytes:
        """Return a last value in the codec of a subscriber. Raises CodecError."""
        publication = encodings.get(codec)
        if publication is None:
            message = decode_event(LAST_VALUES_CODEC, encodings[LAST_VALUES_CODEC])
            publication = codec.encode(message.name, message.args, message.kwargs, message.headers)
            encodings[codec] = publication
            self.kept_bytes += len(publication)
        return publication

    def _matching(self, name: str) -> tuple[tuple[Session, SubscriberQueue], ...]:
        # Each change of the subscriptions replaces the cache, so a late find goes into an abandoned one.
        cache = self._matching_cache
        matching = cache.get(name)
        if matching is None:
            matching = tuple(
                (session, subscription)
                for session, subscriptions in tuple(self._subscribers.items())
                for subscription in tuple(subscriptions.values())
                if subscription.matches(name)
            )
            if len(cache) >= NAMES_CACHED:
                cache.clear()
            cache[name] = matching
        return matching

    def _end(self, session: Session, subscription: SubscriberQueue) -> None:
        """End a subscription of a slow subscriber; UNSUBSCRIBED is sent once the window has room."""
        self._ended.setdefault(session, []).append(subscription)
        self.unsubscribe(session, subscription.id)

    def _refill(self, session: Session) -> None:
        """Move publications of one session to its outbox, whose window has room."""
        # The caller holds the link. A signal handler in a thread that publishes may wait for the link in tick().
        if not self._locked(self._move, session, timeout=REFILL_TIMEOUT_S):
            self._writable(session)

    def _move(self, session: Session) -> None:
        pending, encode, now = session.outbox.pending, session.codec.encode, self._clock()
        for subscription in tuple(self._subscribers.get(session, {}).values()):
            for number, publication in subscription.pop_publications(BATCH_EVENTS, BATCH_BYTES, now):
                data = encode(PUBLISHED, (subscription.id, number, publication), {}, {})
                if len(data) + HEAD_BYTES > session.outbox.max_frame:
                    subscription.dropped += 1  # Over the max_frame of this client, which detects the gap.
                else:
                    session.outbox.count_bytes(len(data))
                    pending.append(data)
            if subscription.ended:
                self._end(session, subscription)
        for subscription in self._ended.get(session, ()):
            pending.append(encode(UNSUBSCRIBED, (subscription.id, subscription.ended), {}, {}))
        self._ended.pop(session, None)


def _encode(codec: Codec, largest: int, name: str, *parts: Any) -> bytes:
    """Return an encoded publication. Raises CodecError, FrameTooLarge."""
    publication = codec.encode(name, *parts)
    # The exact size needs a second encoding: JSON carries nested bytes as base64. Small ones fit in any case.
    if len(publication) > largest // 2:
        size = len(codec.encode(PUBLISHED, (UNBOUNDED_BYTES, UNBOUNDED_BYTES, publication), {}, {}))
        if size > largest:
            raise FrameTooLarge(
                f"publication {shortened(name)} has {size} bytes, over {largest} here; send it in parts"
            )
    return publication


def _size(encodings: dict[Codec, bytes]) -> int:
    return sum(map(len, encodings.values()))


def _check_options(queue: object, when_full: object, max_lag: object, queue_bytes: object) -> None:
    """Raise TypeError or ValueError. Both ends check: an invalid value would break every later publication."""
    check_count("queue", queue)
    check_count("queue_bytes", queue_bytes)
    check_choice("when_full", when_full, POLICIES)
    if max_lag is not None:
        check_seconds("max_lag", max_lag)


OnGap = Callable[[int | None], None]
"""Called with the number of missing publications, or None if it is unknown."""
_ids: Final = itertools.count(1)


class Subscription:
    """A subscription of a client. `close` ends it."""

    def __init__(
        self,
        pattern: str,
        listener: Callable[..., Any],
        options: tuple[int, str, float | None, bool, int],
        on_gap: OnGap | None,
        adapt: Callable[[Callable[..., Any]], Callable[..., Any]] = lambda function: function,
        unsubscribe: Callable[[Subscription], None] = lambda _: None,
        report: Callable[[Exception], None] = lambda _: None,
        *,
        pass_event: bool,
    ) -> None:
        """``adapt`` makes what to call for a callback, and ``report`` gets an exception of ``on_gap``."""
        check_listener(pattern, listener)
        _check_options(*options[:3], options[4])
        if on_gap is not None and not callable(on_gap):
            raise TypeError(f"on_gap must be callable, not {on_gap!r}")
        self.id = next(_ids)
        self.pattern = pattern
        self.missed = 0
        """Publications that were dropped because this client was too slow."""
        self.ended = ""
        """Why the server ended it; empty while it is active."""
        self._listener = adapt(listener)
        self._conversion = None if pass_event else conversion(listener)
        self._pass_event = pass_event
        self._request_args = (self.id, pattern, *options)
        """Arguments of the SUBSCRIBE request."""
        self._on_gap = on_gap and adapt(on_gap)
        self._last_number = self._gap = 0
        self._unsubscribe = unsubscribe
        self._report = report

    def close(self) -> None:
        """End the subscription. May be called twice."""
        self._unsubscribe(self)

    def _on_publication(self, number: int, message: EventMessage, begin: Iterator[tuple[()]] | None = None) -> Any:
        """Report a gap before this publication, call the listener, which takes from ``begin``, and return its value."""
        missing = number - self._last_number - 1
        if missing > 0:
            self.missed, self._gap, self._last_number = self.missed + missing, missing, number - 1
        if self._gap:
            self._report_gap(self._gap)
        if number <= self._last_number:
            return None  # An interrupted server may send a publication twice.
        call = self._listener, self._conversion, EventMessage("", (message.event(),)) if self._pass_event else message
        # In C: no signal handler runs between the note of the number and the listener.
        noted = map(setattr, (self,), ("_last_number",), (number,))
        return next(itertools.starmap(bind(*call), map(itemgetter(0), zip(begin or ((),), noted))))  # noqa: B905

    def _on_server_restart(self) -> None:
        """Report a gap of unknown size: the numbers of the new server start with 1."""
        self._last_number = 0
        self._report_gap(None)

    def _report_gap(self, missing: int | None) -> None:
        if self._on_gap is None:
            return
        try:
            self._gap = 0
            self._on_gap(missing)
        except Exception as error:  # noqa: BLE001 - the publication behind the gap must not be lost
            self._report(error)
        except BaseException:
            # In the main thread SystemExit and the like may come from a signal handler.
            if threading.current_thread() is threading.main_thread():
                self._gap = missing or 0
                raise
            logger.exception("on_gap of subscription %s raised", shortened(self.pattern))


class SubscriberState:
    """Subscriptions of one client, by id."""

    def __init__(self) -> None:
        self.active: dict[int, Subscription] = {}

    def on_publication(self, codec: Codec, message: EventMessage, begin: Iterator[tuple[()]] | None = None) -> Any:
        """Call the listener of a publication; return its value. Raises CodecError, msgspec.ValidationError."""
        identifier, number, publication = msgspec.convert(message.args, tuple[int, int, bytes])
        subscription = self.active.get(identifier)
        return subscription and subscription._on_publication(number, decode_event(codec, publication), begin)

    def on_unsubscribed(self, message: EventMessage) -> None:
        """Handle the end of a subscription by the server. Raises msgspec.ValidationError."""
        identifier, reason = msgspec.convert(message.args, tuple[int, str])
        subscription = self.active.get(identifier)
        if subscription is not None:
            subscription.ended = reason
            subscription._on_server_restart()
            self.active.pop(identifier, None)  # Removed last: after an interrupt the above is repeated.
