"""Following: a client's side of publish and subscribe: what it follows, and how it hears of a gap."""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable
from typing import Any, Final

import msgspec

from remit._patterns.names import PUBLISHED, UNSUBSCRIBED
from remit._patterns.request_reply import decode_nested, encode_nested
from remit._protocol.outbox import BATCH_EVENTS, HEAD_BYTES
from remit._protocol.session import Session
from remit._protocol.subscriptions import SubscriberQueue, check_subscription_options
from remit.codec import Codec, EventMessage, find_codec, shortened
from remit.errors import FrameTooLarge
from remit.listeners import NAMES_CACHED, check_listener, check_name, converter, matcher

__all__ = [
    "OnGap",
    "Publisher",
    "SubscriberState",
    "Subscription",
]


KEPT: Final = find_codec("msgpack")
"""How last values are kept: it loses least of them."""


NO_BOUND: Final = 1 << 62
"""Bytes where nothing bounds a publication."""


class Publisher:
    """The subscriptions of one server. ``writable`` is called with a session for which something waits."""

    def __init__(self, writable: Callable[[Session], None], clock: Callable[[], float] = time.monotonic) -> None:
        self._writable = writable
        self._clock = clock
        self._subscribers: dict[Session, dict[int, SubscriberQueue]] = {}
        self._followers: dict[str, tuple[tuple[Session, SubscriberQueue], ...]] = {}
        self._kept: dict[str, dict[Codec, bytes]] = {}
        """The last values, sealed when they were published: what the publisher changes later is not what is kept."""
        self._ended: dict[Session, list[SubscriberQueue]] = {}
        """Subscriptions that were ended from here, of which their clients have yet to be told."""
        self.lock = threading.Lock()
        """Publishers are any threads, and whoever ticks takes what they have queued."""
        self.published = 0

    def __len__(self) -> int:
        with self.lock:
            return sum(len(subscriptions) for subscriptions in self._subscribers.values())

    @property
    def dropped(self) -> int:
        """Publications that present subscribers did not get because they did not keep up."""
        with self.lock:
            return sum(one.dropped for each in self._subscribers.values() for one in each.values())

    def subscribe(
        self,
        session: Session,
        identifier: int,
        pattern: str,
        queue: int,
        when_full: str,
        max_lag: float | None,
        last: bool,
    ) -> None:
        """Service: begin a subscription, and with ``last`` send what was kept. Raises TypeError, ValueError."""
        check_subscription_options(queue, when_full, max_lag)
        check_listener(pattern, self.subscribe)
        if not isinstance(identifier, int):
            raise TypeError(f"a subscription's number is not {identifier!r}")
        subscription = SubscriberQueue(identifier, matcher(pattern), queue=queue, when_full=when_full, max_lag=max_lag)
        session.outbox.refill = functools.partial(self._refill, session)
        with self.lock:
            # Asked twice, by a client that could not know whether it was heard: what goes on must not begin anew.
            if self._subscribers.setdefault(session, {}).setdefault(identifier, subscription) is not subscription:
                return
            self._followers = {}
            if last:
                now = self._clock()
                for name, kept in self._kept.items():
                    if subscription.matches(name):
                        subscription.enqueue(_sealed_for(session.codec, kept), now)
                self._writable(session)

    def unsubscribe(self, session: Session, identifier: int) -> None:
        """End a subscription."""
        with self.lock:
            self._drop(session, identifier)

    def remove_session(self, session: Session) -> None:
        """A session has ended, and its subscriptions with it."""
        with self.lock:
            self._ended.pop(session, None)
            if self._subscribers.pop(session, None) is not None:
                self._followers = {}

    def publish(
        self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool, largest: int = NO_BOUND
    ) -> int:
        """Queue a publication for all who follow; return how many do.

        Raises CodecError, ValueError, and FrameTooLarge for one that needs more than ``largest`` bytes.
        """
        check_name(name)
        with self.lock:
            now = self._clock()
            followers = self._following(name)
            codecs = {session.codec for session, _ in followers} | ({KEPT} if keep else set())
            sealed = {codec: _sealed_within(codec, largest, name, args, kwargs) for codec in codecs}
            if keep:
                self._kept[name] = sealed
            self.published += 1
            for session, subscription in followers:
                subscription.enqueue(sealed[session.codec], now)
                if subscription.ended:
                    self._end(session, subscription)
                self._writable(session)
        return len(followers)

    def _following(self, name: str) -> tuple[tuple[Session, SubscriberQueue], ...]:
        followers = self._followers.get(name)
        if followers is None:
            followers = tuple(
                (session, subscription)
                for session, subscriptions in tuple(self._subscribers.items())
                for subscription in tuple(subscriptions.values())
                if subscription.matches(name)
            )
            if len(self._followers) >= NAMES_CACHED:
                self._followers = {}
            self._followers[name] = followers
        return followers

    def _end(self, session: Session, subscription: SubscriberQueue) -> None:
        """End a subscription from here; its client is told as soon as there is room for that."""
        self._drop(session, subscription.id)
        self._ended.setdefault(session, []).append(subscription)

    def _drop(self, session: Session, identifier: int) -> None:
        self._subscribers.get(session, {}).pop(identifier, None)
        self._followers = {}

    def _refill(self, session: Session) -> None:
        """Outbox: there is room: what waits for this subscriber may go on."""
        pending, encode, now = session.outbox.pending, session.codec.encode, self._clock()
        with self.lock:
            for subscription in tuple(self._subscribers.get(session, {}).values()):
                for number, sealed in subscription.pop_publications(BATCH_EVENTS, now):
                    data = encode(PUBLISHED, (subscription.id, number, sealed), {}, {})
                    if len(data) + HEAD_BYTES > session.outbox.max_frame:
                        subscription.dropped += 1  # Its client takes smaller frames than we do, and sees the gap.
                    else:
                        pending.append(data)
                if subscription.ended:
                    self._end(session, subscription)
            for subscription in self._ended.pop(session, ()):
                pending.append(encode(UNSUBSCRIBED, (subscription.id, subscription.ended), {}, {}))


def _sealed_within(codec: Codec, largest: int, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> bytes:
    """Return a publication, sealed. Raises CodecError, FrameTooLarge."""
    sealed = encode_nested(codec, name, args, kwargs)
    if len(sealed) > largest // 2:  # It is worth a closer look.
        size = len(codec.encode(PUBLISHED, (NO_BOUND, NO_BOUND, sealed), {}, {}))
        if size > largest:
            raise FrameTooLarge(
                f"publication {shortened(name)} has {size} bytes, over {largest} here; send it in parts"
            )
    return sealed


def _sealed_for(codec: Codec, kept: dict[Codec, bytes]) -> bytes:
    """Return a last value in the codec of whoever wants it. Raises CodecError."""
    sealed = kept.get(codec)
    if sealed is None:
        wire = decode_nested(KEPT, kept[KEPT])
        sealed = kept[codec] = encode_nested(codec, wire.name, wire.args, wire.kwargs)
    return sealed


OnGap = Callable[[int | None], None]
"""Called with how many publications are missing; None if nobody can know."""
_numbers: Final = itertools.count(1)


class Subscription:
    """What a client follows. `close` ends it."""

    def __init__(
        self,
        pattern: str,
        listener: Callable[..., Any],
        options: tuple[int, str, float | None, bool],
        on_gap: OnGap | None,
        *,
        pass_event: bool,
    ) -> None:
        check_listener(pattern, listener)
        check_subscription_options(*options[:3])
        if on_gap is not None and not callable(on_gap):
            raise TypeError(f"on_gap is called with a number, but {on_gap!r} cannot be")
        self.id = next(_numbers)
        self.pattern = pattern
        self.missed = 0
        """Publications that did not come since this client was too slow for them."""
        self.ended = ""
        """Why the server ended it; empty while it goes on."""
        self._listener = listener if pass_event else converter(listener)
        self._pass_event = pass_event
        self._options = options
        self._on_gap = on_gap
        self._last = 0
        self._stop: Callable[[Subscription], None] = lambda _: None

    @property
    def _request_args(self) -> tuple[Any, ...]:
        """What is asked of the server."""
        return (self.id, self.pattern, *self._options)

    def close(self) -> None:
        """Hear no more of it. May be called twice."""
        self._stop(self)

    def _set_unsubscribe(self, stop: Callable[[Subscription], None]) -> None:
        """Note how it is ended."""
        self._stop = stop

    def _on_publication(self, number: int, wire: EventMessage) -> Any:
        """Tell of a gap before this publication, then give it to the listener, and return what that does.

        Raises what the two raise.
        """
        missing, self._last = number - self._last - 1, number
        if missing > 0:
            self.missed += missing
            self._gap(missing)
        return self._listener(wire.event()) if self._pass_event else self._listener(*wire.args, **wire.kwargs)

    def _on_server_restart(self) -> None:
        """The server began anew: nobody knows what was published meanwhile."""
        self._last = 0
        self._gap(None)

    def _gap(self, missing: int | None) -> None:
        if self._on_gap is not None:
            self._on_gap(missing)


class SubscriberState:
    """The subscriptions of one client."""

    def __init__(self) -> None:
        self._subscriptions: dict[int, Subscription] = {}

    def __iter__(self) -> Any:
        return iter(tuple(self._subscriptions.values()))

    def __len__(self) -> int:
        return len(self._subscriptions)

    def add(self, subscription: Subscription) -> None:
        """Follow from now on."""
        self._subscriptions[subscription.id] = subscription

    def remove(self, subscription: Subscription) -> bool:
        """Follow no more; False if it was not followed."""
        return self._subscriptions.pop(subscription.id, None) is not None

    def on_publication(self, codec: Codec, wire: EventMessage) -> Any:
        """Take a publication; return what its listener does. Raises CodecError, msgspec.ValidationError, and so on."""
        identifier, number, sealed = msgspec.convert(wire.args, tuple[int, int, bytes])
        subscription = self._subscriptions.get(identifier)
        return None if subscription is None else subscription._on_publication(number, decode_nested(codec, sealed))

    def on_unsubscribed(self, wire: EventMessage) -> None:
        """The server has ended a subscription. Raises msgspec.ValidationError."""
        identifier, why = msgspec.convert(wire.args, tuple[int, str])
        subscription = self._subscriptions.pop(identifier, None)
        if subscription is not None:
            subscription.ended = why
            subscription._on_server_restart()
