"""Input and output of `doorman map`: command templates, inputs from words or a descriptor, output in order."""

from __future__ import annotations

import contextlib
import os
import os.path
import queue
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TextIO

from doorman.cli import discard_output
from doorman.errors import BadCommandLine
from doorman.task import Task
from remit.errors import LocationInUse, RemitError
from remit.transport import FileLock

__all__ = ["SEPARATOR", "Inputs", "OutputPrinter", "Template", "split_command"]

SEPARATOR: Final = ":::"
"""Word between the command and its inputs."""
_PLACEHOLDER: Final = re.compile(r"\{(?:\.|/|//|/\.|#)?\}")
_VALUES: Final[dict[str, Callable[[str, int], str]]] = {
    "{}": lambda text, _: text,
    "{.}": lambda text, _: _without_extension(text),
    "{/}": lambda text, _: os.path.basename(text),  # noqa: PTH119 - an input need not be a path
    "{//}": lambda text, _: os.path.dirname(text) or ".",  # noqa: PTH120
    "{/.}": lambda text, _: _without_extension(os.path.basename(text)),  # noqa: PTH119
    "{#}": lambda _, number: str(number),
}


def split_command(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the command and its inputs; None if they come from standard input. Raises BadCommandLine."""
    if SEPARATOR not in words:
        return list(words), None
    at = words.index(SEPARATOR)
    command, inputs = list(words[:at]), list(words[at + 1 :])
    if SEPARATOR in inputs:
        raise BadCommandLine(f"{SEPARATOR!r} is given twice: write all inputs after one, or make the pairs in a shell")
    return command, inputs


class Template:
    """A command with placeholders; without any, the input is appended. Raises BadCommandLine if it is empty."""

    def __init__(self, words: Sequence[str], *, shell: bool = False) -> None:
        if not words:
            raise BadCommandLine("no command given: write one, as in: doorman map gzip {} ::: *.log")
        self._words = list(words)
        self._shell = shell
        if not any(_PLACEHOLDER.search(word) for word in words):
            self._words.append("{}")

    def fill(self, text: str, number: int) -> list[str]:
        """Return the command for the input with that number; for a shell the input is quoted."""
        if not self._shell:
            return [_fill(word, text, number, str) for word in self._words]
        return ["/bin/sh", "-c", _fill(" ".join(self._words), text, number, shlex.quote)]


def _fill(word: str, text: str, number: int, quote: Callable[[str], str]) -> str:
    return _PLACEHOLDER.sub(lambda found: quote(_VALUES[found[0]](text, number)), word)


def _without_extension(text: str) -> str:
    return os.path.splitext(text)[0]  # noqa: PTH122


READ_AHEAD: Final = 1024
"""Inputs that are read before they are needed."""
CHUNK: Final = 1 << 16
"""Bytes of one read."""


class Inputs:
    """Inputs in order; None instead of words: they are added by a thread. ``total`` is None until the last is known."""

    def __init__(self, words: Sequence[str] | None) -> None:
        self.total = None if words is None else len(words)
        self.popped = 0
        """Number of inputs returned so far."""
        self._queue: queue.Queue[str] = queue.Queue(READ_AHEAD if words is None else 0)
        for word in words or ():
            self._queue.put(word)

    @property
    def exhausted(self) -> bool:
        """Whether all inputs have been returned."""
        return self.popped == self.total

    def pop(self) -> str | None:
        """Return the next input without waiting; None if there is none, or none yet."""
        try:
            text = self._queue.get_nowait()
        except queue.Empty:
            return None
        self.popped += 1
        return text

    @classmethod
    def read(cls, descriptor: int, separator: bytes, wake: Callable[[], None]) -> Inputs:
        """Return inputs that a thread reads from a descriptor; ``wake`` is called in that thread for each."""
        inputs = cls(None)
        # Read the descriptor, not sys.stdin: a daemon thread that holds the lock of a buffered reader at interpreter
        # exit aborts the process.
        arguments = (descriptor, separator, wake)
        threading.Thread(target=inputs._read, args=arguments, name="doorman-inputs", daemon=True).start()
        return inputs

    def _read(self, descriptor: int, separator: bytes, wake: Callable[[], None]) -> None:
        """Thread: split the stream into inputs; empty ones are skipped."""
        count = 0
        for line in filter(None, _split(descriptor, separator)):
            self._queue.put(os.fsdecode(line))  # waits while READ_AHEAD inputs are queued
            wake()
            count += 1
        self.total = count
        wake()


def _split(descriptor: int, separator: bytes) -> Iterator[bytes]:
    rest = b""
    while chunk := _read(descriptor):
        *lines, rest = (rest + chunk).split(separator)
        yield from lines
    yield rest


def _read(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""  # closed, or a terminal that belongs to another session


class OutputPrinter:
    """Prints the output of each finished task as a whole: its stdout to stdout, its stderr to stderr.

    ``folder`` is where the log files are kept; None: a temporary folder, whose files are removed once printed.
    ``hidden`` returns a context manager that hides the progress while something is printed.
    """

    def __init__(
        self, folder: str | None, hidden: Callable[[], AbstractContextManager[None]], *, keep_order: bool
    ) -> None:
        self._temporary = _TemporaryFolder() if folder is None else None
        self.folder = str(self._temporary.path) if self._temporary else folder
        self._keep_order, self._hidden = keep_order, hidden
        self._held: dict[int, tuple[Path, Path] | None] = {}
        self._next = 1
        self.closed = False
        """Whether the reader of standard output or standard error is gone."""

    def print_output(self, number: int, task: Task | None) -> None:
        """Print the output of the task with that number, in order if wanted; None: the input needed no task."""
        files = None if task is None else task.output
        if not self._keep_order:
            self._print(files)
            return
        self._held[number] = files
        while self._next in self._held:
            self._print(self._held.pop(self._next))
            self._next += 1

    def close(self) -> None:
        """Print the outputs that are still held, and remove the temporary folder."""
        for number in sorted(self._held):
            self._print(self._held[number])
        if self._temporary:
            self._temporary.close()

    def _print(self, files: tuple[Path, Path] | None) -> None:
        if files is None:
            return
        written = [path for path in files if path.exists() and path.stat().st_size]
        if written and not self.closed:
            with self._hidden():
                for path in written:
                    self._copy(path, sys.stdout if path is files[0] else sys.stderr)
        if self._temporary:
            for path in files:
                path.unlink(missing_ok=True)

    def _copy(self, path: Path, to: TextIO) -> None:
        try:
            with path.open("rb") as file:
                shutil.copyfileobj(file, to.buffer)
            to.buffer.flush()
        except BrokenPipeError:
            self.closed = True
            discard_output(to)


PREFIX: Final = "doorman-map-"
LOCK: Final = "map"
"""File in a temporary folder that its process locks; the kernel releases the lock however the process ends."""


class _TemporaryFolder:
    """A temporary folder; one that a killed process left behind is removed by the next process that makes one."""

    def __init__(self) -> None:
        for left in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
            with contextlib.suppress(OSError, RemitError):
                if left.lstat().st_uid == os.geteuid():
                    lock = FileLock(str(left / LOCK))
                    shutil.rmtree(left, ignore_errors=True)
                    lock.release()
        while True:
            self.path = Path(tempfile.mkdtemp(prefix=PREFIX))
            try:
                self._lock = FileLock(str(self.path / LOCK))
                return
            except LocationInUse:
                continue  # another process found the folder before it was locked, and removes it: make another one
            except RemitError:
                if self.path.exists():
                    raise

    def close(self) -> None:
        """Remove the folder."""
        # Remove it while it is locked: otherwise another process could lock it in between.
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()
