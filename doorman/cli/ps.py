"""Ps: `doorman ps`: what the tasks of running managers are doing."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager

import msgspec

from doorman.cli.table import TASK_HEAD, aligned, task_rows
from doorman.control.remote import Remote, find, look_at_all
from doorman.control.view import ManagerView
from doorman.errors import ControlError

__all__ = ["asked", "looked", "main", "table"]

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
