"""Listen: `remit listen`: a server whose listener is the standard output."""

from __future__ import annotations

import argparse
import os
import sys
from contextlib import closing
from typing import Any, Final

import msgspec

from remit.cli.signals import stopped_by_signals
from remit.event import Event
from remit.server import Server
from remit.transport import Waker

__all__ = ["main"]

LOOK: Final = 60.0
"""Seconds of one wait at the most; what arrives, and a signal, end it earlier."""
UNPRINTABLE: Final = 2
"""Exit code after an event that could not be printed."""


def main(given: argparse.Namespace) -> int:
    """Print events until there were enough, a signal comes, or nobody reads any more."""
    printer = _Printer(given.count)
    with (
        closing(printer.waker),
        Server(given.location, on_error=printer.failed) as server,
        stopped_by_signals(printer.stop),
    ):
        server.add_listener(given.pattern, printer.show, pass_event=True)
        print(f"listening on {server.location}", file=sys.stderr, flush=True)
        while not printer.done:
            # No more than will be printed: an event that was dispatched is confirmed to whoever emitted it.
            if not server.tick(limit=printer.left):
                server.wait(LOOK, printer.waker)
    return printer.code


class _Printer:
    """Prints ``count`` events, or all that come, until it is stopped."""

    def __init__(self, count: int | None) -> None:
        self.left = count
        self.done = False
        self.code = 0
        self.waker = Waker()

    def show(self, event: Event) -> None:
        print(_line(event), flush=True)
        if self.left is not None:
            self.left -= 1
            self.done = self.done or self.left == 0

    def failed(self, event: Event, error: Exception) -> None:
        """Hear what kept an event from being printed: as a rule, that the reader of our output has gone."""
        if isinstance(error, BrokenPipeError):
            # What is left in the buffer would fail once more while the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.stop()
        else:
            print(f"remit: cannot print {event.name!r}: {error}", file=sys.stderr)
            self.code = UNPRINTABLE

    def stop(self) -> None:
        """Make it end. Safe in a signal handler."""
        self.done = True
        self.waker.wake()


def _line(event: Event) -> str:
    shown: dict[str, Any] = {"name": event.name, "args": event.args}
    if event.kwargs:
        shown["kwargs"] = event.kwargs
    if event.headers:
        shown["headers"] = event.headers
    if event.sender is not None:
        shown["sender"] = event.sender.id
    return msgspec.json.encode(shown).decode()
