"""Progress of `doorman map` on standard error: a bar on a terminal, otherwise a line every few seconds."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Final, NamedTuple

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress

__all__ = ["Counts", "ProgressLines", "progress_on_stderr"]

LINE_INTERVAL_S: Final = 5.0
BAR_INTERVAL_S: Final = 0.1


class Counts(NamedTuple):
    """Numbers of inputs by state."""

    done: int
    total: int | None
    """None until all inputs have been read."""
    failed: int
    running: int

    def __str__(self) -> str:
        total = "?" if self.total is None else str(self.total)
        return f"{self.done}/{total} done, {self.failed} failed, {self.running} running"


class ProgressLines:
    """Progress as lines on standard error."""

    max_wait = 60.0
    """Seconds after which `show` must be called again, even if nothing has changed."""

    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_INTERVAL_S

    def show(self, counts: Counts) -> None:
        """Show the counts, at most every `LINE_INTERVAL_S` seconds."""
        if time.monotonic() >= self._next:
            self.print_line(str(counts))
            self._next = time.monotonic() + LINE_INTERVAL_S

    def print_line(self, text: str) -> None:
        """Print a message beside the progress."""
        with self.hidden():
            print(f"doorman: {text}", file=sys.stderr, flush=True)

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Hide the progress for the duration of a block, which may print."""
        yield

    def close(self) -> None:
        """Remove the progress from the terminal."""


class _ProgressBar(ProgressLines):
    max_wait = 1.0

    def __init__(self, bar: RichProgress) -> None:
        super().__init__()
        self._bar = bar
        self._task = bar.add_task("", total=None, failed="", running=0)
        self._refreshed = 0.0
        bar.start()

    def show(self, counts: Counts) -> None:
        failed = f"[red]{counts.failed} failed[/red]" if counts.failed else ""
        self._bar.update(self._task, completed=counts.done, total=counts.total, failed=failed, running=counts.running)
        if time.monotonic() - self._refreshed >= BAR_INTERVAL_S:
            self._bar.refresh()
            self._refreshed = time.monotonic()

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        self._bar.stop()
        try:
            yield
        finally:
            self._bar.start()

    def close(self) -> None:
        self._bar.stop()


def progress_on_stderr() -> ProgressLines:
    """Return a bar if standard error is a terminal and rich is installed, else lines."""
    if not sys.stderr.isatty():
        return ProgressLines()
    try:
        from rich import progress
        from rich.console import Console
    except ImportError:
        return ProgressLines()
    columns = (
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("{task.fields[failed]}"),
        progress.TextColumn("{task.fields[running]} running"),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
    )
    # Without rich's refresh thread: it would print while a task's output is being copied.
    return _ProgressBar(progress.Progress(*columns, console=Console(stderr=True), transient=True, auto_refresh=False))
