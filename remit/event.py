"""Event: what a user emits: a name, arguments, and headers for those who trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remit.sender import Sender

__all__ = ["Event", "check_event"]


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
