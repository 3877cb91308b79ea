"""View: what a manager tells of itself and its tasks to those who ask: plain values, fit for any codec."""

from __future__ import annotations

from typing import Any

import msgspec

from doorman.identity import Identity

__all__ = ["ManagerView", "TaskView"]


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """One task, as its manager saw it when it was asked."""

    id: str
    name: str
    state: str
    attempt: int
    identity: Identity | None = None
    """The process that was proven to be this task's; None until then."""
    cpu: float | None = None
    """Per cent of one core, of it and all that it has started: since anybody last asked, or else since it began."""
    memory: int | None = None
    """Bytes resident now, of it and all that it has started."""
    age: float | None = None
    """Seconds since its own code began."""
    restarts: int = 0
    progress: str = ""
    command: str = ""
    why: str | None = None
    """What holds it back while it waits."""


class ManagerView(msgspec.Struct, frozen=True, kw_only=True):
    """One manager and its tasks: first those that run, then those that wait."""

    name: str
    kind: str
    process: Identity
    tasks: tuple[TaskView, ...] = ()
    running: int = 0
    waiting: int = 0
    left_off: int = 0
    """Waiting tasks beyond those in `tasks`."""
    progress: str = ""

    @classmethod
    def read(cls, answer: Any) -> ManagerView:
        """Make one of what came over the wire. Raises msgspec.ValidationError."""
        return msgspec.convert(answer, cls)
