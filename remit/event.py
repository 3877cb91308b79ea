"""Events, and the clients that send them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

if TYPE_CHECKING:
    from remit._protocol.session import Session

__all__ = ["Credentials", "Event", "Sender"]

NO_HEADERS: Final[Mapping[str, Any]] = {}


class Credentials(NamedTuple):
    """Identity of a peer process on this host, as reported by the kernel."""

    pid: int
    uid: int
    gid: int
    inode: int | None = None
    """Inode of the peer's pidfd, unique per boot; None if the kernel does not report it."""


class Sender:
    """A client, as seen by the listeners of its server."""

    __slots__ = ("_emit", "id", "session")

    def __init__(self, session: Session, emit: Callable[..., None]) -> None:
        self.id = session.id.hex()
        """32 hexadecimal digits, the same for all events of one client in one process."""
        self.session = session
        """Internal state of this client."""
        self._emit = emit

    @property
    def credentials(self) -> Credentials | None:
        """The client's process as reported by the kernel; None if the transport cannot know it."""
        return self.session.credentials

    @property
    def connected(self) -> bool:
        """Whether the client is known to be connected. Its session outlives its connections."""
        return self.session.peer is not None

    def emit(self, name: str | Event, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to this client only, given by name and arguments or as an `Event`. It is acknowledged.

        Raises CodecError, FrameTooLarge, QueueFull, and EmitError if its session has ended.
        """
        if isinstance(name, Event):
            self._emit(*parts_of(name, args, kwargs))
        else:
            self._emit(name, args, kwargs)

    def __repr__(self) -> str:
        return f"<Sender {self.id[:8]}>"

    def __copy__(self) -> Self:
        return self

    def __deepcopy__(self, _: object) -> Self:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Another process has no session with this client: an event arrives there without its sender.
        return _no_sender, ()


def _no_sender() -> None:
    return None


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as emitted or as a listener registered with ``pass_event=True`` receives it."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    sender: Sender | None = field(default=None, compare=False, repr=False)
    """The client that emitted it; None for an event that was emitted locally."""
    redelivered: bool = False
    """Whether an earlier server may have dispatched it already."""


def parts_of(
    name: str | Event, args: Sequence[Any], kwargs: Mapping[str, Any]
) -> tuple[str, Sequence[Any], Mapping[str, Any], Mapping[str, Any]]:
    """Return the name, arguments, keyword arguments and headers of an operation, which takes an `Event` as its name.

    Raises TypeError for a malformed event, and for arguments beside it.
    """
    if not isinstance(name, Event):
        return name, args, kwargs, NO_HEADERS
    if args or kwargs:
        raise TypeError(f"an Event has its own arguments: put these into it: {(*args, *kwargs)}")
    check_event(name)
    return name.name, name.args, name.kwargs, name.headers


def check_event(event: Event) -> None:
    """Raise TypeError for an event that could be encoded, but not be decoded by the receiver."""
    if not isinstance(event, Event):
        raise TypeError(f"expected an Event, not {event!r}; emit() takes a name and arguments")
    if not isinstance(event.args, tuple | list):
        raise TypeError(f"args of an event must be a tuple, not {event.args!r}")
    for what in (event.kwargs, event.headers):
        if not isinstance(what, Mapping) or not all(isinstance(key, str) for key in what):
            raise TypeError(f"kwargs and headers of an event must be mappings with string keys, not {what!r}")
