"""Session: a manager at work behind the command line: others find it, a signal ends it, a second one in a hurry."""

from __future__ import annotations

import argparse
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, Final

from doorman.control.server import Control
from doorman.errors import BadCommandLine
from doorman.launcher.zygote import ZygoteLauncher
from doorman.manager import ProcessManager
from remit.config import resolve

__all__ = ["Session", "session"]


SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
LONG: Final = 60.0
"""Seconds of one wait at the most; what arrives, and a signal, end it earlier."""


class Session:
    """What the commands that start processes have in common."""

    def __init__(self, manager: ProcessManager) -> None:
        self.manager = manager
        self.ending = False
        """Somebody wants it to end: by a signal, or by `doorman stop`."""
        self.hurry = False
        """Somebody wants that at once: by a second signal."""
        self.signal: int | None = None
        """The signal that came first."""
        self.progress: Callable[[], str] = str
        """Says in a few words how far it is, for those who ask."""

    def interrupt(self, number: int, frame: FrameType | None = None) -> None:
        """Signal handler: end, and at the second time at once."""
        self.hurry = self.ending
        self.signal = self.signal or number
        self.end()

    def end(self) -> None:
        """Have it end, as `doorman stop` does and SIGTERM."""
        self.ending = True
        self.signal = self.signal or signal.SIGTERM
        self.wake()

    def unread(self) -> None:
        """End, since nobody reads what it writes; to be told so again, of the other stream, is no second signal."""
        if not self.ending:
            self.interrupt(signal.SIGPIPE)

    def wake(self) -> None:
        """Make `wait` return. Safe from any thread, and in a signal handler."""
        self.manager.server.wake()

    def wait(self, most: float = LONG) -> None:
        """Wait until there may be something to do."""
        if not self.ending or self.manager.busy:
            self.manager.wait(most)


@contextlib.contextmanager
def session(given: argparse.Namespace, kind: str, *, stdin: int | None = None, **options: Any) -> Iterator[Session]:
    """Open a manager as the command line says; signals end it, not this process. Leaving stops what still runs.

    ``stdin`` is the standard input of what it starts; None: there is nothing to be read.
    """
    try:
        if stdin is not None:
            scheme = resolve(given.location).scheme
            options["launcher"] = ZygoteLauncher(entry=f"doorman._worker.main:prepare:{scheme}", stdin=stdin)
        manager = ProcessManager(given.location, grace=given.grace, **options)
    except (ValueError, OSError) as error:
        raise BadCommandLine(str(error)) from error
    with manager:
        opened = Session(manager)
        with _listed(opened, given.name, kind), _signals(opened.interrupt):
            yield opened


@contextlib.contextmanager
def _listed(opened: Session, name: str | None, kind: str) -> Iterator[None]:
    try:
        control = Control(
            opened.manager,
            name=name,
            kind=kind,
            on_end=opened.end,
            progress=lambda: opened.progress(),
        )
    except ValueError as error:
        raise BadCommandLine(str(error)) from error
    with control:
        yield


@contextlib.contextmanager
def _signals(handler: Callable[[int, FrameType | None], None]) -> Iterator[None]:
    """Handle the signals that ask for an end, but for those that are ignored, as under nohup."""
    before = {number: signal.getsignal(number) for number in SIGNALS}
    handled = {number: was for number, was in before.items() if was is not signal.SIG_IGN}
    for number in handled:
        signal.signal(number, handler)
    try:
        yield
    finally:
        for number, was in handled.items():
            signal.signal(number, was)
