"""The process manager of `doorman run`, `map` and `up`, with its signal handlers and its registry entry."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from doorman.cli import discard_output
from doorman.control.server import Control
from doorman.errors import BadCommandLine
from doorman.launcher.zygote import ZygoteLauncher
from doorman.manager import ProcessManager
from remit.config import resolve

SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
MAX_WAIT_S: Final = 60.0


class ManagerSession:
    """A manager with a stop request, which a signal, `doorman stop` or a closed output pipe sets."""

    def __init__(self, manager: ProcessManager) -> None:
        self.manager = manager
        self.stopping = False
        self.killing = False  # a second signal arrived: kill without a grace period
        self.signal: int | None = None  # the first one; SIGTERM for `doorman stop`
        self.progress: Callable[[], str] = str  # returns the text that `doorman ps` and `top` show

    def handle_signal(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: request a stop, or a kill on the second signal."""
        # Set flags only: the handler may interrupt the manager at any line of its tick.
        self.killing = self.stopping
        self.signal = self.signal or number
        self.request_stop()

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
        # Once stopped and idle there is nothing to wait for: return, so that the command can end.
        if not self.stopping or self.manager.busy:
            self.manager.wait(timeout)


@contextlib.contextmanager
def open_manager(
    arguments: argparse.Namespace, kind: str, *, stdin: int | None = None, **options: Any
) -> Iterator[ManagerSession]:
    """Open the manager of a command, and handle signals inside the block. Leaving the block stops the tasks.

    ``stdin`` is the descriptor of their standard input; None: it is empty. Raises BadCommandLine.
    """
    with contextlib.ExitStack() as stack:
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
        with _signal_handlers(session.handle_signal):
            yield session


@contextlib.contextmanager
def _signal_handlers(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    # Ignored signals stay ignored: nohup sets SIGHUP to SIG_IGN.
    replaced = {number: old for number in SIGNALS if (old := signal.getsignal(number)) is not signal.SIG_IGN}
    for number in replaced:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, old in replaced.items():
            signal.signal(number, old)
