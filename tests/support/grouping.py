"""Grouping: tasks that are watched, and group managers at work."""

from __future__ import annotations

import time
from collections.abc import Callable

from waiting import DEADLINE

from doorman import GroupManager, State, Task

__all__ = ["Watched", "begin", "fail", "run"]


class Watched(Task):
    """A task that keeps what became of it in a list for the whole test."""

    def __init__(self, heard: list[str], name: str, fn: Callable[..., object] = str, **policy: object) -> None:
        super().__init__(fn, name=name, **policy)
        self.heard = heard

    def _set_state(self, state: State) -> None:
        super()._set_state(state)
        if state is State.RUNNING or self.done():
            self.heard.append(f"{self.name} {state}")


def run(groups: GroupManager) -> None:
    groups.run(DEADLINE)
    assert not groups.tick()


def fail() -> None:
    raise ValueError("on purpose")


def begin(groups: GroupManager, task: Task) -> None:
    """Tick until the task's own code may run."""
    deadline = time.monotonic() + DEADLINE
    while task.state is not State.RUNNING:
        assert groups.tick(), f"ended without {task}"
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {task}"
        groups.wait(0.05)
