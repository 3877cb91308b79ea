"""Ps: `doorman ps`: what the tasks of running managers are doing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Final

import msgspec

from doorman.control.client import Remote, find, look_at_all
from doorman.control.views import ManagerView, TaskView
from doorman.errors import ControlError

__all__ = ["TASK_HEAD", "aligned", "as_age", "as_memory", "asked", "looked", "main", "table", "task_row", "task_rows"]


TASK_HEAD: Final = (
    "MANAGER", "ID", "NAME", "STATE", "PID", "STRENGTH", "CPU%", "RSS", "AGE", "RESTARTS", "PROGRESS",
)  # fmt: skip
LONGEST: Final = 40
"""Characters of a cell that are shown."""
_STEPS: Final = (("G", 1 << 30), ("M", 1 << 20), ("K", 1 << 10))


def aligned(rows: Iterable[Sequence[str]]) -> str:
    """Return rows as lines, each column as wide as its widest cell."""
    cut = [[_cut(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cut, strict=True)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cut
    )


def task_rows(view: ManagerView) -> list[tuple[str, ...]]:
    """Return a row for each task of a manager, one for those that it left off, and one if there are none."""
    rest = ("",) * (len(TASK_HEAD) - 4)
    rows = [task_row(view, task) for task in view.tasks]
    if view.left_off:
        rows.append((view.name, "...", f"{view.left_off} more", "waiting", *rest))
    return rows or [(view.name, "-", "-", "idle", *rest)]


def task_row(view: ManagerView, task: TaskView) -> tuple[str, ...]:
    """Return the row of one task. Its pid is the proven one, with the strength of the proof beside it, or none."""
    identity = task.identity
    return (
        view.name,
        task.id,
        task.name,
        task.state,
        str(identity.pid) if identity else "-",
        identity.strength if identity else "-",
        "-" if task.cpu is None else f"{task.cpu:.0f}",
        as_memory(task.memory),
        as_age(task.age),
        str(task.restarts),
        task.progress or (task.why or "" if task.state == "waiting" else ""),
    )


def as_memory(size: int | None) -> str:
    """Return bytes as ``12.3M``."""
    if size is None:
        return "-"
    for unit, step in _STEPS:
        if size >= step:
            return f"{size / step:.1f}{unit}"
    return str(size)


def as_age(seconds: float | None) -> str:
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


def _cut(cell: str) -> str:
    plain = "".join(character if character.isprintable() else "?" for character in cell)
    return plain if len(plain) <= LONGEST else f"{plain[: LONGEST - 3]}..."


SILENT = 1
"""Exit code when a manager did not answer."""


def main(given: argparse.Namespace) -> int:
    """Print a table, or JSON; 1 if a manager did not answer."""
    with asked(given) as remotes:
        views, complaints = looked(remotes)
    if given.json:
        print(msgspec.json.format(msgspec.json.encode(views)).decode())
    else:
        print(table(views))
    for complaint in complaints:
        print(f"doorman: {complaint}", file=sys.stderr)
    return SILENT if complaints else 0


@contextmanager
def asked(given: argparse.Namespace) -> Iterator[list[Remote]]:
    """Open the managers that a command line means. Raises ManagerNotFound, LocationError."""
    with ExitStack() as stack:
        yield [stack.enter_context(remote) for remote in find(given.manager, given.location, timeout=given.timeout)]


def looked(remotes: list[Remote]) -> tuple[list[ManagerView], list[ControlError]]:
    """Ask all managers; return what they tell, and what went wrong with the others."""
    answers = look_at_all(remotes)
    views = [answer for answer in answers if isinstance(answer, ManagerView)]
    return views, [answer for answer in answers if isinstance(answer, ControlError)]


def table(views: Sequence[ManagerView]) -> str:
    """Return the tasks of managers as a table."""
    if not views:
        return "no managers run here: start one by `doorman run`, `map` or `up`"
    return aligned([TASK_HEAD, *(row for view in views for row in task_rows(view))])
