"""Exceptions that Remit raises, in one tree.

::

    RemitError
    ├── LocationError              the location of a server is not clear
    │   ├── BadLocation            an address that cannot be parsed
    │   ├── UnknownOption          an option that this transport does not have
    │   └── UnknownLocation        a name that is not configured
    ├── PluginError                no usable transport for a scheme
    │   ├── TransportNotInstalled
    │   ├── TransportBroken
    │   └── SchemeClaimedTwice
    ├── TransportError             a backend refused an operation
    │   ├── LocationInUse
    │   ├── FrameTooLarge
    │   ├── LinkClosed
    │   ├── ForkedLinkError
    │   └── WrongThreadError
    ├── CodecError                 an event that cannot be encoded, or bytes that cannot be decoded
    ├── ProtocolError              a frame that breaks the protocol; counted, never fatal to a server
    ├── EmitError                  an event was not accepted or not delivered
    │   ├── QueueFull
    │   ├── EmitTimeout
    │   └── Undelivered
    ├── RequestError               a request without a reply
    │   ├── RequestTimeout
    │   ├── RequestFailed          its listener raised
    │   │   └── DeadLetter         every worker that started it died
    │   ├── NoListener
    │   └── PeerLost
    ├── PairBusy                   the pair already has two members
    ├── SignalTimeout              no signal arrived in time
    ├── SessionRefused             the server does not continue this client's session
    ├── WouldDeadlock              a wait that only the waiting thread could end
    └── ReentrantTick              a listener called tick()
"""

from __future__ import annotations

import copyreg
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from remit.event import Event


class RemitError(Exception):
    """Base of all exceptions that Remit raises."""

    # Pickled without a call of the constructor, whose arguments are not the text in `args`.
    def __reduce__(self) -> tuple[object, ...]:
        return copyreg.__newobj__, (type(self), *self.args), vars(self)  # type: ignore[attr-defined]


class LocationError(RemitError, ValueError):
    """Base of the errors about the location of a server."""


class BadLocation(LocationError):
    """Raised when an address, an option or a config file cannot be parsed."""


class UnknownOption(LocationError):
    """Raised when a location has an option, or a config file a key, that does not exist."""


class UnknownLocation(LocationError):
    """Raised when a location's name is not defined in the environment or a config file, or no location is given."""


class PluginError(RemitError):
    """Base of the errors about finding a transport."""


class TransportNotInstalled(PluginError):
    """Raised when no installed distribution provides a location's scheme, or the scheme is blocked."""


class TransportBroken(PluginError):
    """Raised when the plugin for a scheme cannot be loaded; its own error is the cause."""


class SchemeClaimedTwice(PluginError):
    """Raised when two installed distributions provide the same scheme."""


class TransportError(RemitError):
    """Raised when a backend refuses an operation of a link; the backend's error is the cause."""


class LocationInUse(TransportError):
    """Raised when a server binds a location at which another server is bound."""


class FrameTooLarge(TransportError):
    """Raised when a frame exceeds ``capabilities.max_frame`` bytes, before any of it is sent."""


class LinkClosed(TransportError):
    """Raised when a link, client or server is used after its ``close()``."""


class ForkedLinkError(TransportError):
    """Raised when a link is used in a forked child, which must open its own."""


class WrongThreadError(TransportError):
    """Raised when a link is used by a thread that does not own it."""


class CodecError(RemitError):
    """Raised when an event cannot be encoded, or bytes cannot be decoded as an event."""


class ProtocolError(RemitError):
    """Raised when a frame violates the protocol; client and server count and drop such frames."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason


class EmitError(RemitError):
    """Base of the errors about an event that was not accepted or not delivered."""


class QueueFull(EmitError):
    """Raised by ``emit`` when the queue is full and the client has ``when_full="raise"``."""


class EmitTimeout(EmitError, TimeoutError):
    """Raised by ``emit`` when the queue stayed full for ``emit_timeout`` seconds."""


class Undelivered(EmitError):
    """Raised when a client closes before the server has acknowledged all its events.

    ``never_sent`` were not accepted by the transport; ``unknown`` were sent but not acknowledged, so their listeners
    may have run; ``received`` were acknowledged as received, but not as handled.
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
        names = [event.name for event in self.events]
        # Names come from users: a long one, or many, must not fill the log.
        shown = ", ".join(repr(name)[:80] for name in names[:5]) + (", ..." if len(names) > 5 else "")
        reason = f" ({why})" if why else ""
        super().__init__(
            f"{len(names)} event{'s' * (len(names) != 1)} undelivered{reason}: {len(never_sent)} never sent, "
            f"{len(unknown)} sent but not acknowledged, "
            f"{len(received)} received but not acknowledged as handled: {shown}"
        )

    @property
    def events(self) -> tuple[Event, ...]:
        """All events that were not acknowledged as handled, oldest first."""
        return self.received + self.unknown + self.never_sent


class RequestError(RemitError):
    """Base of the errors about a request without a reply."""


class RequestTimeout(RequestError, TimeoutError):
    """Raised when no reply to a request arrived before its deadline."""


class RequestFailed(RequestError):
    """Raised when the listener of a request raised; ``traceback`` is the remote traceback as text."""

    def __init__(self, type_name: str, message: str, traceback: str = "") -> None:
        super().__init__(f"{type_name}: {message}" + (f"\n\n{traceback}" if traceback else ""))
        self.type_name = type_name
        """Type of the remote exception, such as ``builtins.ZeroDivisionError``."""
        self.message = message
        self.traceback = traceback


class DeadLetter(RequestFailed):
    """Raised when a job was started as often as its broker allows, and each worker died."""


class NoListener(RequestError, LookupError):
    """Raised when the server has no listener for a request's name."""


class PeerLost(RequestError, ConnectionError):
    """Raised immediately when the connection is lost while a request is open; its listener may run or have run."""


class PairBusy(RemitError):
    """Raised when a pair already has two members."""


class SignalTimeout(RemitError, TimeoutError):
    """Raised when the signal or the other member of a pair did not arrive in time."""


class SessionRefused(RemitError):
    """Raised when a server refuses a client's session; ``reason`` says why."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"the server refused this session: {detail or reason}")
        self.reason = reason


class WouldDeadlock(RemitError, RuntimeError):
    """Raised immediately when only the waiting thread itself could end the wait."""


class ReentrantTick(RemitError, RuntimeError):
    """Raised when a listener calls ``tick()`` of the server that is dispatching it."""
