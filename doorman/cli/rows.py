"""Rows: what became of each input of `doorman map`, as the rows of its final table."""

from __future__ import annotations

import signal
from typing import Final

from doorman.cli.table import aligned, as_memory
from doorman.states import State
from doorman.task import Task

__all__ = ["FAILURES", "Rows", "ending"]

HEAD: Final = ("INPUT", "STATE", "EXIT", "SECONDS", "MAX RSS", "PID", "STRENGTH")
FAILURES: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})


class Rows:
    """The rows in the order of the inputs, and how many of each kind."""

    def __init__(self) -> None:
        self.failed = 0
        self.done = 0
        self.cancelled = 0
        self.skipped = 0
        """Inputs that were done before, according to a journal."""
        self._rows: dict[int, tuple[bool, tuple[str, ...]]] = {}

    def ended(self, number: int, text: str, task: Task, *, failed: bool) -> bool:
        """Take in what became of one input; return whether it failed."""
        self.failed += failed
        self.done += task.state is State.DONE
        self.cancelled += task.state is State.CANCELLED and not failed
        self._rows[number] = failed, _row(text, task)
        return failed

    def done_before(self, number: int, text: str) -> None:
        """Take in an input that was not run, since it had been done."""
        self.skipped += 1
        self._rows[number] = False, (text, "done before", *("-",) * (len(HEAD) - 2))

    @property
    def ran(self) -> int:
        """How many inputs are over with."""
        return len(self._rows)

    def table(self, *, failed_only: bool = False) -> str:
        """Return the table; empty without rows."""
        rows = [row for _, (failed, row) in sorted(self._rows.items()) if failed or not failed_only]
        return aligned([HEAD, *rows]) if rows else ""


def _row(text: str, task: Task) -> tuple[str, ...]:
    identity = task.identity
    return (
        text,
        str(task.state),
        ending(task),
        "-" if task.duration is None else f"{task.duration:.2f}",
        as_memory(task.max_rss),
        str(identity.pid) if identity else "-",
        identity.strength if identity else "-",
    )


def ending(task: Task) -> str:
    """Return its exit code, or the name of the signal that ended it."""
    if task.signal is not None:
        return signal.Signals(task.signal).name
    return "-" if task.exit_code is None else str(task.exit_code)
