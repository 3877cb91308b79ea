"""Events that one end could not decode: both ends log them, and their sender gets an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from remit._limited_log import LimitedLog
from remit._patterns.event_router import EventRouter
from remit._patterns.names import REJECTED, RESERVED, UNDECODABLE
from remit.codec import EventMessage, shortened
from remit.errors import CodecError
from remit.event import Event, Sender


class Rejections:
    """Handles undecodable events of the other end, and the events of this end that the other could not decode."""

    def __init__(
        self,
        router: EventRouter,
        report: Callable[[Event, Exception], None],
        reject: Callable[[Sender | None, str, Any, str], None],
    ) -> None:
        """``reject`` sends REJECTED, or the reply to a request, given sender, event name, first argument and reason."""
        router.register(UNDECODABLE, self._on_undecodable)
        router.register(REJECTED, self._on_rejected)
        self.count = 0
        """Events of this end that the other could not decode."""
        self._report = report
        self._reject = reject
        self._log = LimitedLog()

    def _on_undecodable(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        name, first, reason = msgspec.convert(message.args, tuple[str, Any, str])
        by = "the server" if sender is None else f"client {sender.id[:8]}"
        self._log.warning(name, "dropped event %s of %s, which cannot be decoded: %s", shortened(name), by, reason)
        if name != REJECTED:  # Otherwise two ends with different codecs would answer each other without end.
            self._reject(sender, name, first, reason)

    def _on_rejected(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        name, reason = msgspec.convert(message.args, tuple[str, str])
        self.count += 1
        end = "server" if sender is None else "client"
        error = CodecError(f"the {end} could not decode {shortened(name)}: {reason}; use the same codec at both ends")
        self._report(Event(name.removeprefix(RESERVED), sender=sender), error)
