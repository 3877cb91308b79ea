"""`doorman run`: run one command as a proven task, with the output and exit code of the command."""

from __future__ import annotations

import argparse
import os
import sys
from typing import Any, Final

from doorman.cli.manager_session import ManagerSession, open_manager
from doorman.cli.ps import exit_text
from doorman.errors import BadCommandLine
from doorman.states import State
from doorman.task import Task

EXIT_NOT_STARTED: Final = 2
EXIT_EXPIRED: Final = 124  # as that of timeout(1)


def main(arguments: argparse.Namespace) -> int:
    """Run one command and return its exit code."""
    if not arguments.command:
        raise BadCommandLine("no command given: write it after '--', as in: doorman run -- make test")
    options: dict[str, Any] = {"name": arguments.name} if arguments.name else {}
    with open_manager(arguments, "run", log_path=arguments.log_path, stdin=_usable_stdin()) as session:
        if arguments.log_path is not None:
            # Also print what is written to the log files.
            options["on_output"] = lambda task, stream, line: session.print_line(stream, line)
        task = Task.command(
            arguments.command, expires_in=arguments.expires, retries=arguments.retries, cwd=arguments.cwd, **options
        )
        session.manager.add_task(task)
        _wait_for(task, session, verbose=arguments.verbose)
    session.raise_if_interrupted()
    if session.signal is not None and task.identity is None:
        return 128 + session.signal  # The command had not started.
    return exit_code(task)


def exit_code(task: Task) -> int:
    """Return the exit code of Doorman for a finished command."""
    error = task.exception()
    if task.signal is not None:
        return 128 + task.signal
    if task.exit_code is None:
        print(f"doorman: {error}", file=sys.stderr)
        return EXIT_NOT_STARTED
    # A command that handles SIGTERM may exit with 0 without having finished its work.
    return EXIT_EXPIRED if task.state is State.EXPIRED and task.exit_code == 0 else task.exit_code


def _usable_stdin() -> int | None:
    """Return descriptor 0; None if it is closed, or a terminal that another job reads in the foreground."""
    try:
        # The command runs in its own session. The kernel sends SIGTTIN only to background jobs of the terminal's
        # session, so the command could read the input of another job.
        in_background = os.isatty(0) and os.tcgetpgrp(0) != os.getpgrp()
        os.fstat(0)
    except OSError:
        return None
    return None if in_background else 0


def _wait_for(task: Task, session: ManagerSession, *, verbose: bool) -> None:
    shown = None
    while session.manager.tick():
        if verbose and task.identity is not None and task.identity != shown:
            shown = task.identity
            print(f"doorman: {task.name!r} is pid {shown.pid} ({shown.strength})", file=sys.stderr)
        session.stop_if_requested()
        session.wait()
    if verbose:
        reason = exit_text(task) if task.signal else f"exit code {task.exit_code}"
        print(f"doorman: {task.name!r} is {task.state}: {reason}, {task.duration or 0.0:.2f} s", file=sys.stderr)
