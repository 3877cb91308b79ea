"""Run Doorman's command line as processes."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from waiting import DEADLINE, wait_until

from doorman.control.client import find
from doorman.control.server import ManagerView
from doorman.errors import ControlError

__all__ = ["DOORMAN", "doorman", "ended", "line_of", "looked_at", "running", "started", "until_seen"]

DOORMAN = (sys.executable, "-m", "doorman")


def doorman(*words: str, stdin: str = "", **options: object) -> subprocess.CompletedProcess[str]:
    """Run Doorman to its end."""
    return subprocess.run(
        [*DOORMAN, *words], input=stdin, capture_output=True, text=True, timeout=DEADLINE, check=False, **options
    )


@contextlib.contextmanager
def started(*words: str) -> Iterator[subprocess.Popen[str]]:
    """Start Doorman; kill it at the end of the block."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*DOORMAN, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for the end; return the exit code, output and errors."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line of standard output."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def looked_at(name: str) -> ManagerView | None:
    """Query the manager with that name; None if there is none."""
    try:
        [remote] = find(name)
        with remote:
            return remote.look()
    except ControlError:
        return None


def until_seen(name: str, fact: Callable[[ManagerView], object]) -> ManagerView:
    """Wait until a manager exists and its view has a property."""
    views: list[ManagerView] = []

    def seen() -> bool:
        view = looked_at(name)
        views[:] = [view] if view is not None and fact(view) else []
        return bool(views)

    wait_until(seen)
    return views[0]


def running(view: ManagerView) -> bool:
    """Return whether all tasks of a view are running."""
    return bool(view.tasks) and all(task.state == "running" for task in view.tasks)
