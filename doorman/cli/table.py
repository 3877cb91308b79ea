"""Table: rows of text, aligned, and values as people read them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Final

from doorman.control.view import ManagerView, TaskView

__all__ = ["TASK_HEAD", "aligned", "as_age", "as_memory", "task_row", "task_rows"]

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
