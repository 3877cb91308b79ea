"""Outputs: what the commands of `doorman map` wrote, printed whole when each has ended, in order if asked."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TextIO

from doorman.cli.scratch import Scratch
from doorman.task import Task

__all__ = ["Outputs"]


class Outputs:
    """Prints what ended tasks wrote: their output to standard output, their errors to standard error.

    ``aside`` surrounds each print. Files in a folder of ours are removed once they are printed.
    """

    def __init__(
        self, folder: str | None, *, keep_order: bool, aside: Callable[[], AbstractContextManager[None]]
    ) -> None:
        self._ours = Scratch() if folder is None else None
        self.folder = str(self._ours.folder) if self._ours else folder
        self._keep_order, self._aside = keep_order, aside
        self._held: dict[int, tuple[Path, Path] | None] = {}
        self._next = 1
        self.broken = False
        """Whether nobody reads standard output, or standard error, any more."""

    def ended(self, number: int, task: Task | None) -> None:
        """Print what the ``number``-th task wrote, or hold it until its turn has come; None: it never ran."""
        files = None if task is None else task.output
        if not self._keep_order:
            self._print(files)
            return
        self._held[number] = files
        while self._next in self._held:
            self._print(self._held.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Print what is held still, and clean up."""
        for number in sorted(self._held):
            self._print(self._held[number])
        if self._ours:
            self._ours.close()

    def _print(self, files: tuple[Path, Path] | None) -> None:
        if files is None:
            return
        written = [path for path in files if _size(path)]
        if written and not self.broken:
            with self._aside():
                for path in written:
                    self._copy(path, sys.stdout if path is files[0] else sys.stderr)
        if self._ours:
            for path in files:
                path.unlink(missing_ok=True)

    def _copy(self, path: Path, to: TextIO) -> None:
        try:
            with path.open("rb") as file:
                shutil.copyfileobj(file, to.buffer)
            to.buffer.flush()
        except BrokenPipeError:
            self.broken = True
            # What is left in the buffer would fail once more while the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), to.fileno())


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0
