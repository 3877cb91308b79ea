"""Event: what a user emits: a name, arguments, and headers for those who trace."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

__all__ = ["Credentials", "Event", "Sender", "check_event"]


class Credentials(NamedTuple):
    """What the kernel itself attests of a peer on this host."""

    pid: int
    uid: int
    gid: int
    inode: int | None = None
    """Inode of the peer's pidfd, unique for the whole boot; None where the kernel cannot say it."""


class Sender:
    """The client at the other end of a session."""

    __slots__ = ("_answer", "_credentials", "_here", "id", "session")

    def __init__(
        self,
        identifier: str,
        answer: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
        credentials: Callable[[], Credentials | None],
        here: Callable[[], bool],
        session: object | None = None,
    ) -> None:
        self.id = identifier
        """32 hexadecimal digits, the same for all events of one client in one process."""
        self.session = session
        """What Remit itself keeps of this client: nothing that a listener could use."""
        self._answer = answer
        self._credentials = credentials
        self._here = here

    @property
    def credentials(self) -> Credentials | None:
        """What the kernel attests of the client's process; None where the transport cannot ask it."""
        return self._credentials()

    @property
    def connected(self) -> bool:
        """Whether the client is known to be connected now; its session outlives its connections."""
        return self._here()

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to this client alone, acknowledged like any other.

        Raises CodecError, FrameTooLarge, QueueFull, and EmitError when its session has ended.
        """
        self._answer(name, args, kwargs)

    def __repr__(self) -> str:
        return f"<Sender {self.id[:8]}>"


@dataclass(frozen=True, slots=True)
class Event:
    """One event, as emitted or as a listener registered with ``pass_event=True`` receives it."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    headers: Mapping[str, Any] = field(default_factory=dict)
    sender: Sender | None = field(default=None, compare=False, repr=False)
    """Who emitted it, and how to answer; None for an event that has not travelled."""
    redelivered: bool = False
    """It may have been dispatched before, by a server that has since ended."""


def check_event(event: Event) -> None:
    """Raise TypeError for what would be encoded, and then could not be read as an event by anybody."""
    if not isinstance(event, Event):
        raise TypeError(f"an Event is emitted here, not {event!r}: give a name and arguments to emit()")
    if not isinstance(event.args, tuple | list):
        raise TypeError(f"the args of an event are a tuple, not {event.args!r}")
    for what in (event.kwargs, event.headers):
        if not isinstance(what, Mapping) or not all(isinstance(key, str) for key in what):
            raise TypeError(f"the kwargs and headers of an event are a mapping with texts as keys, not {what!r}")
