"""Run: `doorman run`: one command as a proven task, whose output and exit code are those of the command."""

from __future__ import annotations

import argparse
import functools
import os
import signal
import sys
from typing import Any, Final

from doorman.cli.manager_session import Session, session
from doorman.errors import BadCommandLine
from doorman.states import State
from doorman.task import Task

__all__ = ["exit_code", "main"]

REFUSED: Final = 2
"""Exit code when no process could be started."""
EXPIRED: Final = 124
"""Exit code when it was stopped because its time was over, and made of that a good end; the convention of timeout."""


def main(given: argparse.Namespace) -> int:
    """Run one command and return its exit code."""
    if not given.command:
        raise BadCommandLine("no command is given: write it behind '--', as in: doorman run -- make test")
    policy: dict[str, Any] = {"name": given.name} if given.name else {}
    with session(given, "run", log_path=given.log_path, stdin=_own_input()) as opened:
        if given.log_path is not None:
            policy["on_output"] = functools.partial(_pass_on, opened)
        task = Task.command(given.command, expires_in=given.expires, retries=given.retries, cwd=given.cwd, **policy)
        opened.manager.add_task(task)
        _run(opened, task, verbose=given.verbose)
    return exit_code(task)


def exit_code(task: Task) -> int:
    """Return the exit code that stands for how a command ended."""
    if task.signal is not None:
        return 128 + task.signal
    if task.exit_code is None:
        print(f"doorman: {task.exception()}", file=sys.stderr)
        return REFUSED
    return EXPIRED if task.state is State.EXPIRED and task.exit_code == 0 else task.exit_code


def _own_input() -> int | None:
    """Return the descriptor that the command may read from; None if there is nothing that would be for it."""
    try:
        # The command has a session of its own, in which the kernel would not keep it from the terminal's input.
        in_background = os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()
        os.fstat(0)
    except OSError:
        return None
    return None if in_background else 0


def _pass_on(opened: Session, task: Task, stream: str, line: str) -> None:
    """Print a line that goes into a file as well; once nobody reads that, end as without the file."""
    file = sys.stdout if stream == "stdout" else sys.stderr
    try:
        print(line, file=file, flush=True)
    except BrokenPipeError:
        # What is left in the buffer would fail once more while the interpreter ends.
        os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
        opened.unread()


def _run(opened: Session, task: Task, *, verbose: bool) -> None:
    shown = None
    while opened.manager.tick():
        if verbose and task.identity is not None and task.identity != shown:
            shown = task.identity
            print(f"doorman: {task.name!r} is pid {shown.pid} ({shown.strength})", file=sys.stderr)
        if opened.ending:
            opened.manager.kill() if opened.hurry else opened.manager.stop()
        opened.wait()
    if verbose:
        ended = signal.Signals(task.signal).name if task.signal else f"exit code {task.exit_code}"
        print(f"doorman: {task.name!r} is {task.state}: {ended}, {task.duration or 0.0:.2f} s", file=sys.stderr)
