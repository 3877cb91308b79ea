"""Stop: `doorman stop`: have a manager stop what was looked at, and nothing that has come into its place since."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from typing import NamedTuple

from doorman.cli.ps import asked, looked
from doorman.control.client import Remote
from doorman.control.views import ManagerView, TaskView
from doorman.errors import BadCommandLine, IdentityRefused
from doorman.identity import Identity
from doorman.process import Process

__all__ = ["chosen", "main"]

LIVES = 1
"""Exit code when something that was to end has not ended in time, or is no longer what was meant."""


class Chosen(NamedTuple):
    """What a word on the command line means."""

    manager: ManagerView
    tasks: Sequence[TaskView]
    whole: bool = False
    """Whether the manager as a whole is meant."""


def main(given: argparse.Namespace) -> int:
    """Stop what is named, wait for its end, and say which processes those were; 1 if one lives on."""
    with asked(given) as remotes:
        views, complaints = looked(remotes)
        for complaint in complaints:
            print(f"doorman: {complaint}", file=sys.stderr)
        meant = chosen(given.what, views)
        remote = next(remote for remote, view in _answered(remotes, views) if view is meant.manager)
        return _stop(remote, meant, given.wait)


def chosen(what: str, views: Sequence[ManagerView]) -> Chosen:
    """Return what ``what`` means. Three cases: tasks; a task of a manager; a manager. Raises BadCommandLine."""
    manager, slash, task = what.partition("/")
    qualified = [view for view in views if slash and view.name == manager]
    found = _holding(task, qualified) or _holding(what, views)
    if len(found) > 1:
        choices = " or ".join(sorted(f"{each.manager.name}/{what}" for each in found))
        raise BadCommandLine(f"several managers have a task {what!r}: say which, as {choices}")
    if found:
        return found[0]
    for view in views:
        if view.name == what:
            return Chosen(view, view.tasks, whole=True)
    known = sorted({each.name for view in views for each in view.tasks} | {view.name for view in views})
    shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
    raise BadCommandLine(f"nothing here is named {what!r} (there is: {shown or 'nothing'}); see: doorman ps")


def _holding(what: str, views: Sequence[ManagerView]) -> list[Chosen]:
    """Return who has tasks of that name, or else of that id."""
    by_name = [Chosen(view, [task for task in view.tasks if task.name == what]) for view in views]
    by_id = [Chosen(view, [task for task in view.tasks if task.id == what]) for view in views]
    named = [each for each in by_name if each.tasks]
    return named or [each for each in by_id if each.tasks]


def _answered(remotes: Sequence[Remote], views: Sequence[ManagerView]) -> list[tuple[Remote, ManagerView]]:
    by_name = {remote.name: remote for remote in remotes}
    # A manager that was named by its location alone is the only one that was asked.
    return [(by_name.get(view.name, remotes[0]), view) for view in views]


def _stop(remote: Remote, meant: Chosen, patience: float) -> int:
    with ExitStack() as stack:
        # Held before anybody is told: what ends is what was looked at.
        held = [(task, _held(task.identity, stack)) for task in meant.tasks]
        itself = _held(meant.manager.process, stack) if meant.whole else None
        if meant.whole:
            remote.end()
            words = {task.id: "told" for task in meant.tasks}
        else:
            words = {task.id: remote.stop(task.id, _attempt(task)) for task in meant.tasks}
        deadline = time.monotonic() + patience
        lives = [not _told(task, process, words[task.id], deadline) for task, process in held]
        if itself is not None:
            ended = itself.wait(deadline - time.monotonic())
            lives.append(not ended)
            print(f"manager {meant.manager.name} (pid {itself.pid}) " + ("has ended" if ended else "goes on"))
    return LIVES if any(lives) else 0


def _held(identity: Identity | None, stack: ExitStack) -> Process | None:
    """Hold a process; None if it is not there to be held, or not on this host."""
    if identity is None:
        return None
    try:
        return stack.enter_context(identity.open())
    except IdentityRefused:
        return None


def _told(task: TaskView, process: Process | None, word: str, deadline: float) -> bool:
    """Say what became of one task; False if it lives on."""
    who = task.name if task.identity is None else f"{task.name} (pid {task.identity.pid}, {task.identity.strength})"
    if word == "changed":
        print(f"{who} has been replaced by another attempt, which was left alone; look again: doorman ps")
        return False
    if word in ("ended", "dropped"):
        print(f"{who} " + ("had ended" if word == "ended" else "waited, and is cancelled"))
        return True
    if process is None:
        print(f"{who} was told to end")
        return True
    ended = process.wait(max(0.0, deadline - time.monotonic()))
    print(f"{who} " + ("has ended" if ended else "was told to end, and goes on: is its grace longer than --wait?"))
    return ended


def _attempt(task: TaskView) -> str | None:
    return None if task.identity is None else task.identity.attempt
