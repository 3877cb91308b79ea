"""Commands: Doorman's command line as real processes, found in a folder of the test's own."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Callable, Iterator

from waiting import DEADLINE, wait_until

from doorman.control.client import find
from doorman.control.views import ManagerView
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
    """Start Doorman; what is left of it is ended."""
    pipe = subprocess.PIPE
    with subprocess.Popen([*DOORMAN, *words], stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def ended(process: subprocess.Popen[str]) -> tuple[int, str, str]:
    """Wait for its end; return its exit code and what it wrote."""
    output, errors = process.communicate(timeout=DEADLINE)
    return process.returncode, output, errors


def line_of(process: subprocess.Popen[str]) -> str:
    """Return the next line that it writes to standard output."""
    assert process.stdout is not None
    return process.stdout.readline().rstrip("\n")


def looked_at(name: str) -> ManagerView | None:
    """Ask the manager of that name; None if it is not there."""
    try:
        [remote] = find(name)
        with remote:
            return remote.look()
    except ControlError:
        return None


def until_seen(name: str, fact: Callable[[ManagerView], object]) -> ManagerView:
    """Wait until a manager is there and tells something."""
    views: list[ManagerView] = []

    def seen() -> bool:
        view = looked_at(name)
        views[:] = [view] if view is not None and fact(view) else []
        return bool(views)

    wait_until(seen)
    return views[0]


def running(view: ManagerView) -> bool:
    """Fact: all tasks that it tells of run."""
    return bool(view.tasks) and all(task.state == "running" for task in view.tasks)
