"""`doorman stop`: stop a task or a whole manager, wait for the end, and report the end of each process."""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from typing import Final, NamedTuple

from doorman.cli.ps import open_managers
from doorman.control.client import Remote, look_at_all
from doorman.control.server import ManagerView, TaskView
from doorman.errors import BadCommandLine, IdentityRefused
from doorman.identity import Identity
from doorman.process import Process

EXIT_STILL_RUNS: Final = 1


class Target(NamedTuple):
    """The tasks, or the whole manager, that the command line names."""

    manager: ManagerView
    tasks: Sequence[TaskView]
    whole: bool = False


def main(arguments: argparse.Namespace) -> int:
    """Stop the named target and wait for its end; return 1 if a process still runs."""
    with open_managers(arguments) as remotes:
        views, errors = look_at_all(remotes)
        for error in errors:
            print(f"doorman: {error}", file=sys.stderr)
        target = find_target(arguments.what, views)
        # A manager that was selected by --location may have no name here; then it is the only one.
        by_name = {remote.name: remote for remote in remotes}
        return _stop(by_name.get(target.manager.name, remotes[0]), target, arguments.wait)


def find_target(what: str, views: Sequence[ManagerView]) -> Target:
    """Return the target with a name: MANAGER/TASK, a task or a manager, in this order. Raises BadCommandLine."""
    manager, slash, task = what.partition("/")
    qualified = [view for view in views if slash and view.name == manager]
    found = _with_task(task, qualified) or _with_task(what, views)
    if len(found) > 1:
        choices = " or ".join(sorted(f"{each.manager.name}/{what}" for each in found))
        raise BadCommandLine(f"several managers have a task {what!r}: name one, as {choices}")
    if found:
        return found[0]
    for view in views:
        if view.name == what:
            return Target(view, view.tasks, whole=True)
    known = sorted({each.name for view in views for each in view.tasks} | {view.name for view in views})
    shown = ", ".join(known[:10]) + (", ..." if len(known) > 10 else "")
    raise BadCommandLine(f"no task or manager is named {what!r} (running: {shown or 'nothing'}); see: doorman ps")


def _with_task(what: str, views: Sequence[ManagerView]) -> list[Target]:
    """Return the managers with tasks of a name, or if there are none, with a task of that id."""
    named = [Target(view, [task for task in view.tasks if task.name == what]) for view in views]
    with_id = [Target(view, [task for task in view.tasks if task.id == what]) for view in views]
    return [each for each in named if each.tasks] or [each for each in with_id if each.tasks]


def _stop(remote: Remote, target: Target, timeout: float) -> int:
    with ExitStack() as stack:
        # Open the pidfds before the request: afterwards a pid could already belong to another process.
        opened = [(task, _open_process(task.identity, stack)) for task in target.tasks]
        itself = _open_process(target.manager.process, stack) if target.whole else None
        if target.whole:
            remote.end()
            results = {task.id: "stopping" for task in target.tasks}
        else:
            results = {
                task.id: remote.stop(task.id, None if task.identity is None else task.identity.attempt)
                for task in target.tasks
            }
        # One deadline for all: the processes end at the same time, not one after the other.
        deadline = time.monotonic() + timeout
        runs = [not _report(task, process, results[task.id], deadline) for task, process in opened]
        if itself is not None:
            ended = itself.wait(deadline - time.monotonic())
            runs.append(not ended)
            print(f"manager {target.manager.name} (pid {itself.pid}) " + ("has ended" if ended else "still runs"))
    return EXIT_STILL_RUNS if any(runs) else 0


def _open_process(identity: Identity | None, stack: ExitStack) -> Process | None:
    """Open a process by pidfd; None if it has ended or runs on another host."""
    if identity is not None:
        with suppress(IdentityRefused):
            return stack.enter_context(identity.open())
    return None


def _report(task: TaskView, process: Process | None, result: str, deadline: float) -> bool:
    """Wait for the end of one task and print it; return False if its process still runs."""
    label = task.name if task.identity is None else f"{task.name} (pid {task.identity.pid}, {task.identity.strength})"
    texts = {"finished": "had ended", "cancelled": "waited, and is cancelled", "stopping": "is stopping"}
    if result == "replaced":
        print(f"{label} was replaced by another attempt, which was not stopped; look again: doorman ps")
        return False
    if result != "stopping" or process is None:
        print(f"{label} {texts[result]}")
        return True
    ended = process.wait(max(0.0, deadline - time.monotonic()))
    print(f"{label} " + ("has ended" if ended else "was stopped, but still runs: is its grace longer than --wait?"))
    return ended
