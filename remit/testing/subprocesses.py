"""Parts of a check that run in another process, which may fork or be killed."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import IO, Any

import cloudpickle

from remit.testing.harness import Harness
from remit.testing.link_pair import LinkEnd, Trial
from remit.testing.violations import Violation, expect


class OtherProcess:
    """Another process that runs a part of a check."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def last_error_line(self) -> str:
        """Return the last line that the process wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "the other process failed silently")
        return last.removeprefix(f"{Violation.__module__}.{Violation.__qualname__}: ")


@contextlib.contextmanager
def run_in_process(trial: Trial, work: Callable[..., None], *arguments: object) -> Iterator[OtherProcess]:
    """Run ``work(trial, *arguments)`` with its own Trial in another process, which is killed when the block ends."""
    # Not all the time left: the other process must still be able to report its error.
    order = _pickled(trial.harness, (trial.harness, trial.seconds_left * 0.8, work, arguments))
    # Files and not pipes: a full pipe would block the other process, and this thread polls links in the same time.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        given.write(order)
        given.seek(0)
        process = subprocess.Popen(
            # Warnings on stderr would hide the last line, which is the error.
            [sys.executable, "-W", "ignore", "-m", "remit.testing.subprocesses"],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            yield OtherProcess(process, errors)
        finally:
            process.kill()
            process.wait()


def wait_for_exit(trial: Trial, other: OtherProcess, *ends: LinkEnd) -> None:
    """Poll the ends until the other process exits. Raises Violation unless its exit code is 0."""

    def over() -> bool:
        if not ends:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.process.wait(trial.seconds_left)
        return other.process.poll() is not None

    trial.wait_until(over, "the other process ends", *ends)
    code = other.process.returncode
    expect(code == 0, other.last_error_line() if code > 0 else f"the other process died of {_name(-code)}")


def run_in_fork(trial: Trial, work: Callable[[], None], *ends: LinkEnd) -> None:
    """Fork, in such a process, and poll the ends until the child has run ``work``."""
    pid = os.fork()
    if not pid:
        _run_and_exit(work, trial.seconds_left)
    status: list[int] = []

    def over() -> bool:
        found, raw = os.waitpid(pid, os.WNOHANG)
        status.extend([os.waitstatus_to_exitcode(raw)] if found else [])
        if not found and not ends:
            # Not a wait on a link, which would change the state that parent and child share.
            signal.sigtimedwait((signal.SIGCHLD,), 0.005)
        return bool(found)

    trial.wait_until(over, "the forked child ends", *ends)
    if status[0] > 0:
        raise SystemExit(status[0])  # The child has printed its error, which must stay the last line of stderr.
    expect(status[0] == 0, f"the forked child died of {_name(-status[0])}")


def _run_and_exit(work: Callable[[], None], seconds: float) -> None:
    # The default action of SIGALRM ends a child that blocks in a call of the transport, in Python code or in C.
    signal.alarm(max(1, round(seconds)))
    code = 1
    try:
        work()
        code = 0
    finally:
        # os._exit: the exit handlers and buffers inherited from the parent must not run or be flushed here.
        if code:
            traceback.print_exc()
            sys.stderr.flush()
        os._exit(code)


def _pickled(harness: Harness, order: tuple[Any, ...]) -> bytes:
    """Pickle an order. A harness from a module that another process cannot import is pickled by value."""
    module = sys.modules[type(harness).__module__]
    with contextlib.ExitStack() as stack:
        if not _importable(module):
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        return bytes(cloudpickle.dumps(order))


def _importable(module: ModuleType) -> bool:
    # Not find_spec(), which also finds loaded modules that are on no path, such as test files.
    parts = (module.__name__ or "").split(".")
    places = [(Path(folder, *parts).with_suffix(".py"), Path(folder, *parts, "__init__.py")) for folder in sys.path]
    return module.__name__ == "__main__" or any(Path(module.__file__ or "") in files for files in places)


def _name(number: int) -> str:
    with contextlib.suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


def main() -> None:
    """Run the pickled order from standard input."""
    # Blocked, so that sigtimedwait() in run_in_fork() receives it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    harness, deadline, work, arguments = cloudpickle.load(sys.stdin.buffer)
    with Trial(harness, deadline) as trial:
        work(trial, *arguments)


if __name__ == "__main__":
    main()
