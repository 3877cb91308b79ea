"""Publishing: a server's side of publish and subscribe: who follows what, and how much each may lag behind."""

from __future__ import annotations

import functools
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Final

from remit.codec import Codec
from remit.endpoint import Clock
from remit.listeners import NAMES_CACHED, RESERVED, matcher
from remit.patterns.envelope import seal
from remit.protocol.outbox import BATCH_EVENTS
from remit.protocol.session import Session
from remit.protocol.subscriptions import POLICIES, Subscription

__all__ = ["PUBLISHED", "SUBSCRIBE", "UNSUBSCRIBE", "UNSUBSCRIBED", "Publishing"]

SUBSCRIBE: Final = "remit.subscribe"
"""A request: subscription, pattern, queue, when_full, max_lag in seconds or None, last values wanted."""
UNSUBSCRIBE: Final = "remit.unsubscribe"
"""An event to the server: subscription."""
PUBLISHED: Final = "remit.published"
"""An event to a subscriber: subscription, number, the sealed publication."""
UNSUBSCRIBED: Final = "remit.unsubscribed"
"""An event to a subscriber whose subscription was ended by the server: subscription, why."""


class Publishing:
    """The subscriptions of one server. ``writable`` is called with a session for which something waits."""

    def __init__(self, writable: Callable[[Session], None], clock: Clock = time.monotonic) -> None:
        self._writable = writable
        self._clock = clock
        self._subscribers: dict[Session, dict[int, Subscription]] = {}
        self._followers: dict[str, tuple[tuple[Session, Subscription], ...]] = {}
        self._kept: dict[str, tuple[tuple[Any, ...], Mapping[str, Any]]] = {}
        self._ended: dict[Session, list[Subscription]] = {}
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
        """Service: begin a subscription, and with ``last`` send what was kept. Raises ValueError."""
        if when_full not in POLICIES:
            raise ValueError(f"when_full of a subscription is one of {', '.join(POLICIES)}, not {when_full!r}")
        if not pattern or queue < 1:
            raise ValueError("a subscription has a pattern, and a queue of at least 1")
        subscription = Subscription(identifier, matcher(pattern), queue=queue, when_full=when_full, max_lag=max_lag)
        session.outbox.source = functools.partial(self._refill, session)
        with self.lock:
            # Asked twice, by a client that could not know whether it was heard: what goes on must not begin anew.
            if self._subscribers.setdefault(session, {}).setdefault(identifier, subscription) is not subscription:
                return
            self._followers = {}
            if last:
                now = self._clock()
                for name, (args, kwargs) in self._kept.items():
                    if subscription.matches(name):
                        subscription.offer(seal(session.codec, name, args, kwargs), now)
                self._writable(session)

    def unsubscribe(self, session: Session, identifier: int) -> None:
        """End a subscription."""
        with self.lock:
            self._drop(session, identifier)

    def forget(self, session: Session) -> None:
        """A session has ended, and its subscriptions with it."""
        with self.lock:
            self._ended.pop(session, None)
            if self._subscribers.pop(session, None) is not None:
                self._followers = {}

    def publish(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any], *, keep: bool) -> int:
        """Queue a publication for all who follow; return how many do. Raises CodecError, ValueError."""
        if name.startswith(RESERVED):
            raise ValueError(f"{name!r} is Remit's own: give your events names that do not begin with {RESERVED!r}")
        sealed: dict[Codec, bytes] = {}
        with self.lock:
            now = self._clock()
            if keep:
                self._kept[name] = args, kwargs
            self.published += 1
            followers = self._following(name)
            for session, subscription in followers:
                data = sealed.get(session.codec)
                if data is None:
                    data = sealed[session.codec] = seal(session.codec, name, args, kwargs)
                subscription.offer(data, now)
                if subscription.ended:
                    self._end(session, subscription)
                self._writable(session)
        return len(followers)

    def _following(self, name: str) -> tuple[tuple[Session, Subscription], ...]:
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

    def _end(self, session: Session, subscription: Subscription) -> None:
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
                for number, sealed in subscription.take(BATCH_EVENTS, now):
                    pending.append(encode(PUBLISHED, (subscription.id, number, sealed), {}, {}))
                if subscription.ended:
                    self._end(session, subscription)
            for subscription in self._ended.pop(session, ()):
                pending.append(encode(UNSUBSCRIBED, (subscription.id, subscription.ended), {}, {}))
