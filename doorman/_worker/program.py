"""The start of a program in place of this one: search, signals, and the exit codes of a program that cannot be run."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.getsignal() builds an enum for each number.
import contextlib
import errno
import os
import signal
from pathlib import Path
from typing import Final, NoReturn

from doorman.errors import ProgramNotRun

SHELL: Final = "/bin/sh"
EXIT_NOT_FOUND: Final = 127
EXIT_NOT_RUNNABLE: Final = 126
_HEAD_BYTES: Final = 256  # of a file, without a NUL if it is text


def exec_program(command: tuple[str, ...]) -> NoReturn:
    """Replace this program by another; pid and pidfd inode stay. Raises ProgramNotRun.

    A text file that the kernel does not run, for lack of ``#!``, is run by the shell, as execvp(3) does.
    """
    error = OSError(errno.ENOENT, os.strerror(errno.ENOENT))
    name = command[0]
    folders = os.get_exec_path() if name else []  # As in a shell, an empty name is one that is not found.
    for path in [name] if "/" in name else [os.path.join(folder, name) for folder in folders]:  # noqa: PTH118
        restore_signals()
        try:
            _exec(path, command)
        except OSError as failed:
            # As in a shell, the reason why a file that was found cannot be run comes before "not found".
            if failed.errno not in {errno.ENOENT, errno.ENOTDIR} or "/" in name:
                error = failed
            if failed.errno not in {errno.ENOENT, errno.ENOTDIR, errno.EACCES}:
                break
    raise ProgramNotRun(name, reason_of(error, name), exit_code_of(error))


def restore_signals() -> None:
    """Give every signal its default action and block none: a program inherits both from the one that starts it."""
    for number in range(1, signal.NSIG):
        if _signal.getsignal(number) == _signal.SIG_IGN:
            with contextlib.suppress(OSError, ValueError):
                _signal.signal(number, _signal.SIG_DFL)
    _signal.pthread_sigmask(_signal.SIG_SETMASK, ())


def exit_code_of(error: OSError) -> int:
    """Return the exit code of a shell for a program that cannot be run."""
    return EXIT_NOT_FOUND if error.errno == errno.ENOENT else EXIT_NOT_RUNNABLE


def _exec(path: str, command: tuple[str, ...]) -> None:
    try:
        os.execv(path, command)
    except OSError as error:
        if not is_shell_script(path, error):
            raise
        os.execv(SHELL, (SHELL, path, *command[1:]))


def is_shell_script(path: str, error: OSError) -> bool:
    """Return whether a file that the kernel refused to run is text, which a shell runs."""
    if error.errno != errno.ENOEXEC:
        return False
    with open(path, "rb") as file:  # noqa: PTH123 - keeps non-paths
        return b"\0" not in file.read(_HEAD_BYTES)


def reason_of(error: OSError, name: str) -> str:
    """Return why a program cannot be run, with the correction where there is one."""
    if error.errno == errno.ENOENT and "/" in name and Path(name).exists():
        return "the interpreter in its first line, or its loader, does not exist"
    if error.errno == errno.ENOENT and " " in name:
        return f"{error.strerror}; for a shell's command line use `sh -c`"
    return error.strerror or str(error)
