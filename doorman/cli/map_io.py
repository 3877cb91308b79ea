"""Outputs: what the commands of `doorman map` wrote, printed whole when each has ended, in order if asked."""

from __future__ import annotations

import fcntl
import os
import os.path
import queue
import re
import shlex
import shutil
import sys
import tempfile
import threading
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, TextIO

from doorman.errors import BadCommandLine
from doorman.task import Task

__all__ = ["MARK", "Inputs", "Outputs", "Scratch", "Template", "split"]


MARK: Final = ":::"
"""What stands between the command and its inputs."""
_PLACEHOLDER: Final = re.compile(r"\{(?:\.|/|//|/\.|#)?\}")
_VALUES: Final[dict[str, Callable[[str, int], str]]] = {
    "{}": lambda text, _: text,
    "{.}": lambda text, _: _bare(text),
    "{/}": lambda text, _: os.path.basename(text),  # noqa: PTH119 - an input need not be a path
    "{//}": lambda text, _: os.path.dirname(text) or ".",  # noqa: PTH120
    "{/.}": lambda text, _: _bare(os.path.basename(text)),  # noqa: PTH119
    "{#}": lambda _, number: str(number),
}


class Template:
    """A command with placeholders; appended to it is the input if it has none. Raises BadCommandLine if it is empty."""

    def __init__(self, words: Sequence[str], *, shell: bool = False) -> None:
        if not words:
            raise BadCommandLine("no command is given: write one, as in: doorman map gzip {} ::: *.log")
        self._words = list(words)
        self._shell = shell
        if not any(_PLACEHOLDER.search(word) for word in words):
            self._words.append("{}")

    def filled(self, text: str, number: int) -> list[str]:
        """Return the command for one input, which is the ``number``-th. A shell gets the input quoted."""
        if not self._shell:
            return [_fill(word, text, number, str) for word in self._words]
        return ["/bin/sh", "-c", _fill(" ".join(self._words), text, number, shlex.quote)]


def split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the command and its inputs; None: they come from standard input. Raises BadCommandLine."""
    if MARK not in words:
        return list(words), None
    at = words.index(MARK)
    command, inputs = list(words[:at]), list(words[at + 1 :])
    if MARK in inputs:
        raise BadCommandLine(f"{MARK!r} is given twice: write all inputs behind one, or make the pairs in a shell")
    return command, inputs


def _fill(word: str, text: str, number: int, quoted: Callable[[str], str]) -> str:
    return _PLACEHOLDER.sub(lambda found: quoted(_VALUES[found[0]](text, number)), word)


def _bare(text: str) -> str:
    return os.path.splitext(text)[0]  # noqa: PTH122


PREFIX: Final = "doorman-map-"
LOCK: Final = ".lock"
"""The file in it whose lock is held for as long as its process lives, however that ends."""


class Scratch:
    """A folder of this process's own, until `close` or the next one is made after this process has been killed."""

    def __init__(self) -> None:
        _sweep()
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = _locked(self.folder / LOCK, os.O_CREAT)
            if lock is not None:
                self._lock = lock
                return

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _sweep() -> None:
    """Remove what other processes of this user have left behind; what has no lock yet is being made."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = _locked(folder / LOCK)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(path: Path, flags: int = 0) -> int | None:
    """Return a descriptor that has the lock of a file of ours; None if another has it, or has just removed the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_nlink:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None


AHEAD: Final = 1024
"""Lines that are read before they are wanted."""
CHUNK: Final = 1 << 16
"""Bytes of one read."""


class Inputs:
    """Inputs in their order; `take` never waits. ``total`` is None until the last one is known."""

    def __init__(self, given: Sequence[str]) -> None:
        self.total: int | None = len(given)
        self._given = iter(given)
        self._taken = 0

    @property
    def ended(self) -> bool:
        """Whether all have been taken."""
        return self._taken == self.total

    @property
    def taken(self) -> int:
        """How many have been taken."""
        return self._taken

    def take(self) -> str | None:
        """Return the next; None if there is none, or none yet."""
        text = self._next()
        if text is not None:
            self._taken += 1
        return text

    def _next(self) -> str | None:
        return next(self._given, None)

    @classmethod
    def read(cls, descriptor: int, separator: bytes, wake: Callable[[], None]) -> Inputs:
        """Take them from a descriptor as they come; ``wake`` is called, in a thread, when some have."""
        return _Read(descriptor, separator, wake)


class _Read(Inputs):
    def __init__(self, descriptor: int, separator: bytes, wake: Callable[[], None]) -> None:
        super().__init__(())
        self.total = None
        self._lines: queue.Queue[str] = queue.Queue(AHEAD)
        self._separator, self._wake = separator, wake
        # By the descriptor, without a buffer of Python's: the thread may well be in a read when the program ends.
        threading.Thread(target=self._run, args=(descriptor,), name="doorman-inputs", daemon=True).start()

    def _next(self) -> str | None:
        try:
            return self._lines.get_nowait()
        except queue.Empty:
            return None

    def _run(self, descriptor: int) -> None:
        """Thread: cut what is read into lines. Empty ones are no inputs."""
        count, rest = 0, b""
        while chunk := _some(descriptor):
            *lines, rest = (rest + chunk).split(self._separator)
            for line in filter(None, lines):
                self._put(line)
                count += 1
        if rest:
            self._put(rest)
            count += 1
        self.total = count
        self._wake()

    def _put(self, line: bytes) -> None:
        self._lines.put(os.fsdecode(line))
        self._wake()


def _some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, CHUNK)
    except OSError:
        return b""  # closed, or a terminal that is another's


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
