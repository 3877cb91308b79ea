"""Prefix: what several processes write, each line behind the name of its process."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from itertools import cycle
from typing import Final, TextIO

from doorman.task import Task

__all__ = ["Prefixed"]

COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""ANSI's numbers: cyan, yellow, green, magenta, blue, and their bright ones."""


class Prefixed:
    """Prints lines behind names of one width; the names are coloured on a terminal, unless NO_COLOR is set.

    ``unread`` is called when nobody reads any more.
    """

    def __init__(self, names: Iterable[str], unread: Callable[[], None]) -> None:
        self._colours = dict(zip(names, cycle(COLOURS), strict=False))
        self._width = max(map(len, self._colours), default=0)
        self._unread = unread

    def line(self, task: Task, stream: str, line: str) -> None:
        """Print what a task wrote, to the stream that it wrote it to."""
        self._print(task.name, line, sys.stdout if stream == "stdout" else sys.stderr)

    def note(self, name: str, text: str) -> None:
        """Print what is to be said of one of them, to standard error."""
        self._print(name, f"({text})", sys.stderr)

    def _print(self, name: str, text: str, file: TextIO) -> None:
        head = f"{name:{self._width}} |"
        if file.isatty() and not os.environ.get("NO_COLOR"):
            head = f"\x1b[{self._colours[name]}m{head}\x1b[0m"
        try:
            print(head, text, file=file, flush=True)
        except BrokenPipeError:
            # What is left in the buffer would fail once more while the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            self._unread()
