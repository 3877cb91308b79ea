"""Keeper: what a task, and whoever waits for it, asks of the manager that keeps it, whatever else that can do."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Final, Protocol

__all__ = ["LONG", "Keeper"]

LONG: Final = 60.0
"""Seconds that a wait for a manager sleeps at a time at the most; whatever happens wakes it."""


class Keeper(Protocol):
    """A manager as its tasks see it: `doorman.owner.Owner` says what each of these does."""

    @property
    def realm(self) -> Keeper:
        """The manager that runs the tasks in the end."""

    @property
    def owned_here(self) -> bool:
        """Whether the calling thread is the one that ticks it."""

    def tick(self) -> bool:
        """Do what can be done now; True while anything waits or runs."""

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""

    def call_soon(self, function: Callable[[], object]) -> None:
        """Have ``function()`` called in the next tick. Safe from any thread."""

    def cancel(self, task: Any) -> bool:
        """Drop a waiting task or stop a running one; False if it has ended."""

    def run_until(self, task: Any, timeout: float | None) -> None:
        """Make progress until the task has ended. Raises ResultTimeout."""

    async def ended(self, task: Any) -> None:
        """Return when the task has ended."""
