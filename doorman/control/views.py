"""Values that describe a manager and its tasks to another process; any codec can encode them."""

from __future__ import annotations

from typing import Any

import msgspec

from doorman.identity import Identity

__all__ = ["ManagerView", "TaskView"]


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """One task at the time of the query."""

    id: str
    name: str
    state: str
    attempt: int
    identity: Identity | None = None
    """The proven process of the task; None before the proof."""
    cpu: float | None = None
    """Per cent of one core, including descendants, since the last query or else since the start."""
    memory: int | None = None
    """Resident bytes, including descendants."""
    age: float | None = None
    """Seconds since its user code started."""
    restarts: int = 0
    progress: str = ""
    command: str = ""
    why: str | None = None
    """The reason why it waits."""

    @property
    def attempt_id(self) -> str | None:
        """The attempt whose process is proven; None before the proof."""
        return None if self.identity is None else self.identity.attempt


class ManagerView(msgspec.Struct, frozen=True, kw_only=True):
    """One manager and its tasks: the running ones first, then the waiting ones."""

    name: str
    kind: str
    process: Identity
    tasks: tuple[TaskView, ...] = ()
    running: int = 0
    waiting: int = 0
    left_off: int = 0
    """Number of tasks that are missing in `tasks`."""
    progress: str = ""

    @classmethod
    def read(cls, answer: Any) -> ManagerView:
        """Convert the decoded reply of a manager. Raises msgspec.ValidationError."""
        return msgspec.convert(answer, cls)
