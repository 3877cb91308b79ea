"""Journals: records as a manager would write them, and what a journal tells of them."""

from __future__ import annotations

import pickle
from pathlib import Path

from doorman import Journal, State
from doorman.journal.records import Added, Ended, Record

__all__ = ["added", "done", "tasks", "written"]


def added(task: str, call: bytes = b"call") -> Added:
    """A task was added."""
    return Added(task, f"name of {task}", (), pickle.dumps({}), call)


def done(task: str, value: object = None) -> Ended:
    """It has ended well."""
    return Ended(task, State.DONE, value=pickle.dumps(value))


def written(path: Path, *records: Record) -> None:
    """Write the records, as a manager that ends."""
    with Journal(path) as journal:
        journal.append(*records)


def tasks(path: Path) -> list[str]:
    """Return the tasks that a journal tells of."""
    with Journal(path) as journal:
        return [entry.added.task for entry in journal.entries()]
