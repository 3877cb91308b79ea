"""Attempt: one try of a task: its secret, its process, and what is known of its end."""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Any

from doorman.identity import Credential
from doorman.launcher import Exited
from doorman.process import Process
from doorman.result import Outcome
from doorman.states import State
from doorman.task import Task
from doorman.worker import label

__all__ = ["Attempt", "Parts"]


class Parts:
    """A result on its way in, part by part. Only what the attempt's own process signed is kept."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._parts: list[bytes] = []

    def add(self, number: int, parts: int, part: bytes, signature: bytes) -> bytes | None:
        """Keep one part; return the whole once it is there. Raises ValueError for a part that does not belong."""
        if not self._credential.check(label(number, parts) + part, signature):
            raise ValueError("not signed by this attempt's process")
        if number < len(self._parts):
            return None  # heard before, and again after a restart of the wire
        if number > len(self._parts):
            raise ValueError(f"part {number} of {parts} before part {len(self._parts)}")
        self._parts.append(part)
        return b"".join(self._parts) if len(self._parts) == parts else None


@dataclass(eq=False)
class Attempt:
    """One try of a task."""

    task: Task
    call: bytes
    number: int
    id: str = ""
    launched: Process | None = None
    """What the launcher started: the task's process, or a wrapper around it."""
    own: Process | None = None
    """The task's process where that is not what was launched."""
    hello: tuple[dict[str, Any], Any] | None = None
    """A hello, and its sender, that came before the launcher's word."""
    outcome: Outcome | None = None
    exited: Exited | None = None
    stopping: State | None = None
    """Why it was told to end: the state it goes to."""
    credential: Credential = field(init=False)
    parts: Parts = field(init=False)

    def __post_init__(self) -> None:
        self.id = f"{self.task.id}.{self.number}-{secrets.token_hex(4)}"
        self.credential = Credential(self.id, task=self.task.id)
        self.parts = Parts(self.credential)

    @property
    def pid(self) -> int | None:
        """The number of the task's process as far as it is known, for measuring its load."""
        if self.task.identity is not None:
            return self.task.identity.pid
        return None if self.launched is None else self.launched.pid

    def signal(self, number: int) -> None:
        """Signal the whole group of what was launched, and the task's process; through pidfds alone."""
        for process in (self.launched, self.own):
            if process is not None and not process.signal_group(number):
                process.signal(number)

    def close(self) -> None:
        """Let go of the processes, and make every later hello late."""
        self.credential.revoke()
        for process in (self.launched, self.own):
            if process is not None:
                process.close()
