"""Following: a client's side of publish and subscribe: what it follows, and how it hears of a gap."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any, Final

import msgspec

from remit.codec import Codec, Wire
from remit.listeners import check_listener
from remit.patterns.envelope import unseal
from remit.protocol.subscriptions import check_terms
from remit.typed import converter

__all__ = ["Following", "OnGap", "Subscription"]

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
        check_terms(*options[:3])
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
    def wanted(self) -> tuple[Any, ...]:
        """What is asked of the server."""
        return (self.id, self.pattern, *self._options)

    def close(self) -> None:
        """Hear no more of it. May be called twice."""
        self._stop(self)

    def began(self, stop: Callable[[Subscription], None]) -> None:
        """Note how it is ended."""
        self._stop = stop

    def heard(self, number: int, wire: Wire) -> Any:
        """Tell of a gap before this publication, then give it to the listener, and return what that does.

        Raises what the two raise.
        """
        missing, self._last = number - self._last - 1, number
        if missing > 0:
            self.missed += missing
            self._gap(missing)
        return self._listener(wire.event()) if self._pass_event else self._listener(*wire.args, **wire.kwargs)

    def renewed(self) -> None:
        """The server began anew: nobody knows what was published meanwhile."""
        self._last = 0
        self._gap(None)

    def _gap(self, missing: int | None) -> None:
        if self._on_gap is not None:
            self._on_gap(missing)


class Following:
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

    def drop(self, subscription: Subscription) -> bool:
        """Follow no more; False if it was not followed."""
        return self._subscriptions.pop(subscription.id, None) is not None

    def published(self, codec: Codec, wire: Wire) -> Any:
        """Take a publication; return what its listener does. Raises CodecError, msgspec.ValidationError, and so on."""
        identifier, number, sealed = msgspec.convert(wire.args, tuple[int, int, bytes])
        subscription = self._subscriptions.get(identifier)
        return None if subscription is None else subscription.heard(number, unseal(codec, sealed))

    def unsubscribed(self, wire: Wire) -> None:
        """The server has ended a subscription. Raises msgspec.ValidationError."""
        identifier, why = msgspec.convert(wire.args, tuple[int, str])
        subscription = self._subscriptions.pop(identifier, None)
        if subscription is not None:
            subscription.ended = why
            subscription.renewed()
