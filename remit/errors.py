"""Errors: everything that Remit raises on purpose, in one tree.

::

    RemitError
    ├── LocationError              where to go is unclear
    │   ├── BadLocation            the address itself cannot be read
    │   ├── UnknownOption          an option that this transport does not have
    │   └── UnknownLocation        a name that no config file mentions
    ├── PluginError                no transport for a scheme, or one too many
    │   ├── TransportNotInstalled
    │   ├── TransportBroken
    │   └── SchemeClaimedTwice
    ├── TransportError             a backend said no
    │   ├── LocationInUse
    │   ├── FrameTooLarge
    │   ├── LinkClosed
    │   ├── ForkedLinkError
    │   └── WrongThreadError
    ├── CodecError                 an event that cannot become bytes, or bytes that are no event
    ├── ProtocolError              a frame that breaks the protocol; counted, never fatal to a server
    ├── EmitError                  an event was not taken
    │   ├── QueueFull
    │   ├── EmitTimeout
    │   └── Undelivered
    ├── RequestError               a request without an answer
    │   ├── RequestTimeout
    │   ├── RequestFailed          its listener raised
    │   │   └── DeadLetter         every worker that began it died
    │   ├── NoListener
    │   └── PeerLost
    ├── PairBusy                   two have met already
    ├── SignalTimeout              no signal came
    ├── SessionRefused             the server will not continue this client's session
    ├── WouldDeadlock              waiting here would wait for itself
    └── ReentrantTick              a listener called tick()
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.event import Event

__all__ = [
    "BadLocation",
    "CodecError",
    "DeadLetter",
    "EmitError",
    "EmitTimeout",
    "ForkedLinkError",
    "FrameTooLarge",
    "LinkClosed",
    "LocationError",
    "LocationInUse",
    "NoListener",
    "PairBusy",
    "PeerLost",
    "PluginError",
    "ProtocolError",
    "QueueFull",
    "ReentrantTick",
    "RemitError",
    "RequestError",
    "RequestFailed",
    "RequestTimeout",
    "SchemeClaimedTwice",
    "SessionRefused",
    "SignalTimeout",
    "TransportBroken",
    "TransportError",
    "TransportNotInstalled",
    "Undelivered",
    "UnknownLocation",
    "UnknownOption",
    "WouldDeadlock",
    "WrongThreadError",
]


SHOWN = 80
"""Characters of a name that an error shows."""


class RemitError(Exception):
    """Root of all errors that Remit raises on purpose."""


class LocationError(RemitError, ValueError):
    """Raised when it is unclear where a server is to be reached."""


class BadLocation(LocationError):
    """Raised when an address cannot be read as a location."""


class UnknownOption(LocationError):
    """Raised when a location carries an option that its transport does not have."""


class UnknownLocation(LocationError):
    """Raised when a name is used that the environment and the config files do not define."""


class PluginError(RemitError):
    """Root of the errors about finding a transport."""


class TransportNotInstalled(PluginError):
    """Raised when no installed distribution claims a location's scheme."""


class TransportBroken(PluginError):
    """Raised when the plugin that claims a scheme cannot be loaded; its own error is the cause."""


class SchemeClaimedTwice(PluginError):
    """Raised when two installed distributions claim the same scheme."""


class TransportError(RemitError):
    """Raised when a backend refuses to do what a link needs; the backend's error is the cause."""


class LocationInUse(TransportError):
    """Raised when a second server binds a location that another one holds."""


class FrameTooLarge(TransportError):
    """Raised before the wire is touched when a frame is over ``capabilities.max_frame`` bytes."""


class LinkClosed(TransportError):
    """Raised when a link, client or server is used after its ``close()``."""


class ForkedLinkError(TransportError):
    """Raised when a link is used in a process that inherited it by fork; open a new one there."""


class WrongThreadError(TransportError):
    """Raised when a link is used by a thread that does not own it."""


class CodecError(RemitError):
    """Raised when an event cannot be encoded, or bytes are not an event."""


class ProtocolError(RemitError):
    """Raised when a frame breaks the protocol; the ends count it and go on."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class EmitError(RemitError):
    """Root of the errors about an event that was not taken or not delivered."""


class QueueFull(EmitError):
    """Raised by ``emit`` when the queue is full and the client was made with ``when_full="raise"``."""


class EmitTimeout(EmitError, TimeoutError):
    """Raised by ``emit`` when the queue stayed full for ``emit_timeout`` seconds."""


class Undelivered(EmitError):
    """Raised when a client ends before the server has confirmed all its events.

    ``never_sent`` were never given to the transport, ``unknown`` were sent but not confirmed (they may
    have run), ``received`` were confirmed as received although their listeners had not all returned.
    """

    def __init__(
        self,
        never_sent: Sequence[Event] = (),
        unknown: Sequence[Event] = (),
        received: Sequence[Event] = (),
        *,
        why: str = "",
    ) -> None:
        self.never_sent = tuple(never_sent)
        self.unknown = tuple(unknown)
        self.received = tuple(received)
        self.why = why
        super().__init__(self._message())

    @property
    def events(self) -> tuple[Event, ...]:
        """All events whose handling was not confirmed, oldest first."""
        return self.received + self.unknown + self.never_sent

    def _message(self) -> str:
        names = [event.name for event in self.events]
        shown = ", ".join(repr(name)[:SHOWN] for name in names[:5]) + (", ..." if len(names) > 5 else "")
        counts = (
            f"{len(self.never_sent)} never sent, {len(self.unknown)} sent but not confirmed, "
            f"{len(self.received)} received but not confirmed as handled"
        )
        why = f" ({self.why})" if self.why else ""
        return f"{len(names)} event{'s' * (len(names) != 1)} undelivered{why}: {counts}: {shown}"


class RequestError(RemitError):
    """Root of the errors about a request that was not answered with a value."""


class RequestTimeout(RequestError, TimeoutError):
    """Raised when a request was not answered by its deadline."""


class RequestFailed(RequestError):
    """Raised when the listener that a request was for raised; ``traceback`` is its text, from the other side."""

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        told = f"\n\n{traceback}" if traceback else ""
        super().__init__(f"{type_name}: {message}{told}")
        self.type_name = type_name
        """The exception's type there, such as ``builtins.ZeroDivisionError``."""
        self.message = message
        self.traceback = traceback

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.type_name, self.message, self.traceback)


class DeadLetter(RequestFailed):
    """Raised when a job was begun as often as its broker allows, and no worker lived to finish it."""


class NoListener(RequestError, LookupError):
    """Raised when nobody listens for a request's name."""


class PeerLost(RequestError, ConnectionError):
    """Raised at once when the connection to whoever should answer is lost; the request may have run, or may yet."""


class PairBusy(RemitError):
    """Raised when a third one wants to join a pair."""


class SignalTimeout(RemitError, TimeoutError):
    """Raised when a pair's signal did not come in time, or nobody came to be signalled."""


class SessionRefused(RemitError):
    """Raised when a server refuses a client's session; ``reason`` says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"the server refused this session: {detail or reason}")
        self.reason = reason


class WouldDeadlock(RemitError, RuntimeError):
    """Raised at once when a wait could only be ended by the thread that waits."""


class ReentrantTick(RemitError, RuntimeError):
    """Raised when a listener calls ``tick()`` of the server that is dispatching it."""
