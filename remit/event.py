"""Event: what a user emits: a name, arguments, and headers for those who trace."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from remit.sender import Sender

__all__ = ["Event"]


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
