"""`doorman ps`: list the tasks of running managers. Also the formats of the tables of all commands."""

from __future__ import annotations

import argparse
import logging
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Final

import msgspec

from doorman.control.client import Remote, find, look_at_all
from doorman.control.server import ManagerView, TaskView

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.states import State
    from doorman.task import Task

TASK_HEAD: Final = (
    "MANAGER", "ID", "NAME", "STATE", "PID", "STRENGTH", "CPU%", "RSS", "AGE", "RESTARTS", "PROGRESS",
)  # fmt: skip
MAX_CELL_CHARS: Final = 40
EXIT_NO_ANSWER: Final = 1


def main(arguments: argparse.Namespace) -> int:
    """Print the tasks of the managers as a table or as JSON; return 1 if a manager did not answer."""
    with open_managers(arguments) as remotes:
        views, errors = look_at_all(remotes)
    if arguments.json:
        print(msgspec.json.format(msgspec.json.encode(views)).decode())
    elif views:
        print(align([TASK_HEAD, *(row for view in views for row in task_rows(view))]))
    elif not errors:
        print("no managers run here: start one by `doorman run`, `map` or `up`")
    for error in errors:
        print(f"doorman: {error}", file=sys.stderr)
    return EXIT_NO_ANSWER if errors else 0


@contextmanager
def open_managers(arguments: argparse.Namespace) -> Iterator[list[Remote]]:
    """Connect to the managers that the command line selects. Raises ManagerNotFound, LocationError."""
    # The commands report themselves why a manager does not answer.
    logging.getLogger("remit").setLevel(logging.ERROR)
    with ExitStack() as stack:
        found = find(arguments.manager, arguments.location, timeout=arguments.timeout)
        yield [stack.enter_context(remote) for remote in found]


def task_rows(view: ManagerView) -> list[tuple[str, ...]]:
    """Return a row for each task of a manager and one for the tasks left off, or one row for an idle manager."""
    rest = ("",) * (len(TASK_HEAD) - 4)
    rows = [_task_row(view, task) for task in view.tasks]
    if view.left_off:
        rows.append((view.name, "...", f"{view.left_off} more", "waiting", *rest))
    return rows or [(view.name, "-", "-", "idle", *rest)]


def _task_row(view: ManagerView, task: TaskView) -> tuple[str, ...]:
    return (
        view.name,
        task.id,
        task.name,
        task.state,
        *pid_cells(task.identity),
        "-" if task.cpu is None else f"{task.cpu:.0f}",
        format_memory(task.memory),
        format_age(task.age),
        str(task.restarts),
        task.progress or (task.why or "" if task.state == "waiting" else ""),
    )


def pid_cells(identity: Identity | None) -> tuple[str, str]:
    """Return the cells PID and STRENGTH."""
    return ("-", "-") if identity is None else (str(identity.pid), identity.strength)


def align(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as lines, each column as wide as its widest cell."""
    cut = [[_printable(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cut
    )


def _printable(cell: str) -> str:
    # A task's name or progress must not be able to send escape sequences to the terminal.
    plain = "".join(character if character.isprintable() else "?" for character in cell)
    return plain if len(plain) <= MAX_CELL_CHARS else f"{plain[: MAX_CELL_CHARS - 3]}..."


def format_memory(size: int | None) -> str:
    """Return bytes as ``12.3M``."""
    if size is None:
        return "-"
    for unit, step in (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10)):
        if size >= step:
            return f"{size / step:.1f}{unit}"
    return str(size)


def format_age(seconds: float | None) -> str:
    """Return seconds as ``4.2s``, ``3m07s``, ``2h05m`` or ``3d04h``."""
    if seconds is None:
        return "-"
    if seconds < 60:
        return f"{seconds:.1f}s"
    minutes, rest = divmod(int(seconds), 60)
    if minutes < 60:
        return f"{minutes}m{rest:02}s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours}h{minutes:02}m" if hours < 24 else f"{hours // 24}d{hours % 24:02}h"


def exit_text(task: Task) -> str:
    """Return the exit code of a task's process, or the name of the signal that ended it."""
    if task.signal is not None:
        # Most real-time signals have no name.
        return next((each.name for each in signal.Signals if each == task.signal), f"signal {task.signal}")
    return "-" if task.exit_code is None else str(task.exit_code)


def end_text(task: Task, state: State, error: BaseException | None) -> str:
    """Return a state with the exit code or signal of the process; with the error if there was no process."""
    return f"{state}: {exit_text(task) if task.identity else error}"
