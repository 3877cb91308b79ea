"""Broken subscriptions: wrong gaps, wrong order, and beginnings that nobody asked for."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from broken import Mutation
from remit._patterns.pubsub import Publisher
from remit._patterns.pubsub import Subscription as Followed
from remit._protocol.subscriptions import SubscriberQueue
from remit.codec import EventMessage


def number_only_what_is_kept(self: SubscriberQueue, sealed: bytes, now: float, *, original: Any) -> None:
    before = self.dropped
    original(self, sealed, now)
    if self.dropped > before:
        self._last_number -= 1


def newest_first(
    self: SubscriberQueue, most: int, size: int, now: float, *, original: Any
) -> Iterator[tuple[int, bytes]]:
    self._queue.reverse()
    yield from original(self, most, size, now)


def repeat(self: SubscriberQueue, sealed: bytes, now: float, *, original: Any) -> None:
    original(self, sealed, now)
    self._newest = None
    original(self, sealed, now)


def count_a_gap_too_far(self: Followed, number: int, wire: EventMessage, begin: Any, *, original: Any) -> None:
    if number - self._last_number > 1:
        self._last_number -= 1
    original(self, number, wire, begin)


def tell_of_no_gap(self: Followed, missing: int | None, *, original: Any) -> None:
    if missing is None:
        original(self, missing)


def begin_anew(self: Publisher, session: Any, identifier: int, *options: Any, original: Any) -> None:
    self.unsubscribe(session, identifier)
    original(self, session, identifier, *options)


def tell_nobody_of_the_end(self: Publisher, session: Any, subscription: SubscriberQueue) -> None:
    self.unsubscribe(session, subscription.id)


MUTATIONS: list[Mutation] = [
    (SubscriberQueue, "enqueue", number_only_what_is_kept),
    (SubscriberQueue, "enqueue", repeat),
    (SubscriberQueue, "pop_publications", newest_first),
    (Followed, "_on_publication", count_a_gap_too_far),
    (Followed, "_report_gap", tell_of_no_gap),
    (Publisher, "subscribe", begin_anew),
    (Publisher, "_end", tell_nobody_of_the_end),
]
