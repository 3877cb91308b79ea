"""Progress: how far `doorman map` is: a bar on a terminal, now and then a line elsewhere."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Counts", "Lines", "progress_on_stderr"]


APART: Final = 5.0
"""Seconds between two lines."""
REFRESH: Final = 0.1
"""Seconds between two pictures of the bar."""
LONG: Final = 60.0


class Counts(NamedTuple):
    """How far it is."""

    done: int
    total: int | None
    """None until all inputs are known."""
    failed: int
    running: int

    def __str__(self) -> str:
        total = "?" if self.total is None else str(self.total)
        return f"{self.done}/{total} done, {self.failed} failed, {self.running} running"


class Lines:
    """Says how far it is by lines on standard error."""

    patience = LONG
    """Seconds after which it wants to be told again, though nothing has happened."""

    def __init__(self) -> None:
        self._next = time.monotonic() + APART

    def show(self, counts: Counts) -> None:
        """Say it, unless it was said not long ago."""
        if time.monotonic() >= self._next:
            self.say(str(counts))
            self._next = time.monotonic() + APART

    def say(self, text: str) -> None:
        """Say something else, beside it."""
        with self.aside():
            print(f"doorman: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        """Leave the terminal to others for a block."""
        yield

    def close(self) -> None:
        """Say no more."""


class _Bar(Lines):
    """Paints a bar at the foot of the terminal."""

    patience = 1.0

    def __init__(self, bar: RichProgress) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("", total=None, failed="", running=0)
        self._painted = 0.0
        bar.start()

    def show(self, counts: Counts) -> None:
        failed = f"[red]{counts.failed} failed[/red]" if counts.failed else ""
        self._bar.update(self._task, completed=counts.done, total=counts.total, failed=failed, running=counts.running)
        if time.monotonic() - self._painted >= REFRESH:
            self._bar.refresh()
            self._painted = time.monotonic()

    @contextlib.contextmanager
    def aside(self) -> Iterator[None]:
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def close(self) -> None:
        self._bar.stop()


def progress_on_stderr() -> Lines:
    """Return a bar if standard error is a terminal and `rich` is installed, else lines."""
    if not sys.stderr.isatty():
        return Lines()
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return Lines()
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[failed]}"),
        progress.TextColumn("{task.fields[running]} running"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    return _Bar(progress.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False))
