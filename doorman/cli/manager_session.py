"""The process manager of `doorman run`, `map` and `up`, with its signal handlers and its registry entry."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from doorman.control.server import Control
from doorman.errors import BadCommandLine
from doorman.launcher.zygote import ZygoteLauncher
from doorman.manager import ProcessManager
from remit.command_streams import discard_output
from remit.config import resolve

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that request a stop; a second one kills."""
MAX_WAIT_S: Final = 60.0


class ManagerSession:
    """A manager with a stop request, which a signal, `doorman stop` or a closed output pipe sets."""

    def __init__(self, manager: ProcessManager) -> None:
        self.manager = manager
        self.stopping = False
        self.killing = False  # a second signal arrived: kill without a grace period
        self.signal: int | None = None  # the first one; SIGTERM for `doorman stop`
        self.progress: Callable[[], str] = str  # returns the text that `doorman ps` and `top` show
        self._suspending = False  # Ctrl-Z

    def handle_signal(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: request a stop, or a kill on the second signal."""
        # Set flags only: the handler may interrupt the manager at any line of its tick.
        self.killing = self.stopping
        self.signal = self.signal or number
        self.request_stop()

    def handle_suspend(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler of SIGTSTP: stop the processes and then this one, until it is continued."""
        self._suspending = True
        self.wake()

    def raise_if_interrupted(self) -> None:
        """Raise KeyboardInterrupt if Ctrl-C ended the command."""
        if self.signal == signal.SIGINT:
            raise KeyboardInterrupt

    def request_stop(self) -> None:
        """Request a stop, as `doorman stop` does."""
        self.stopping = True
        self.signal = self.signal or signal.SIGTERM
        self.wake()

    def print_line(self, stream: str, line: str) -> None:
        """Print a line to ``stdout`` or ``stderr``; request a stop if the reader of the stream is gone."""
        file = sys.stdout if stream == "stdout" else sys.stderr
        try:
            print(line, file=file, flush=True)
        except BrokenPipeError:
            discard_output(file)
            self.output_closed()

    def output_closed(self) -> None:
        """Request a stop because the reader of an output stream is gone."""
        # Both streams may report this; the second report must not count as a second signal.
        if not self.stopping:
            self.handle_signal(signal.SIGPIPE)

    def stop_if_requested(self) -> bool:
        """Stop or kill all tasks if a stop was requested; return whether it was."""
        if self.stopping:
            self.manager.kill() if self.killing else self.manager.stop()
        return self.stopping

    def wake(self) -> None:
        """Make `wait` return. Safe from any thread and from a signal handler."""
        self.manager.server.wake()

    def wait(self, timeout: float = MAX_WAIT_S) -> None:
        """Wait until the manager has work, a signal arrives or the timeout passes."""
        if self._suspending:
            self._suspend()
        # Once stopped and idle there is nothing to wait for: return, so that the command can end.
        if not self.stopping or self.manager.busy:
            self.manager.wait(timeout)

    def _suspend(self) -> None:
        self._suspending = False
        self.manager.suspend()
        # By the default action, so that a shell sees a job that Ctrl-Z has stopped. The kernel ignores it where no
        # shell could continue the job.
        handler = signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        signal.raise_signal(signal.SIGTSTP)
        signal.signal(signal.SIGTSTP, handler)
        self.manager.resume()


@contextlib.contextmanager
def open_manager(
    arguments: argparse.Namespace, kind: str, *, stdin: int | None = None, **options: Any
) -> Iterator[ManagerSession]:
    """Open the manager of a command, and handle signals inside the block. Leaving the block stops the tasks.

    ``stdin`` is the descriptor of their standard input; None: it is empty. Raises BadCommandLine.
    """
    with contextlib.ExitStack() as stack:
        # Restored last: while the manager closes, a signal must not end this process.
        stack.enter_context(_signals_restored())
        try:
            if stdin is not None:
                scheme = resolve(arguments.location).scheme
                options["launcher"] = ZygoteLauncher(entry=f"doorman._worker.main:prepare:{scheme}", stdin=stdin)
            manager = stack.enter_context(ProcessManager(arguments.location, grace=arguments.grace, **options))
            session = ManagerSession(manager)
            control = Control(
                manager,
                name=arguments.name,
                kind=kind,
                on_end=session.request_stop,
                progress=lambda: session.progress(),  # `map` replaces the function later
            )
            stack.enter_context(control)
        except (ValueError, OSError) as error:
            raise BadCommandLine(str(error)) from error
        # Ignored signals stay ignored: nohup sets SIGHUP to SIG_IGN.
        for number in (*SIGNALS, signal.SIGTSTP):
            if signal.getsignal(number) is not signal.SIG_IGN:
                suspends = number == signal.SIGTSTP
                signal.signal(number, session.handle_suspend if suspends else session.handle_signal)
        yield session


@contextlib.contextmanager
def _signals_restored() -> Iterator[None]:
    before = {number: signal.getsignal(number) for number in (*SIGNALS, signal.SIGTSTP)}
    try:
        yield
    finally:
        for number, handler in before.items():
            if handler is not None:  # Not installed by Python.
                signal.signal(number, handler)
