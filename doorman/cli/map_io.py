"""Input and output of `doorman map`: command templates, inputs, ordered outputs, and progress."""

from __future__ import annotations

import contextlib
import functools
import os
import os.path
import queue
import re
import shlex
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Final, NamedTuple, TextIO

from doorman.errors import BadCommandLine
from doorman.task import Task
from remit.command_streams import discard_output
from remit.errors import LocationInUse, RemitError
from remit.transport import FileLock

LINE_INTERVAL_S: Final = 5.0
BAR_INTERVAL_S: Final = 0.1
BAR_CELLS: Final = 40
MIN_BAR_CELLS: Final = 8
FULL: Final = "\u2501"
ERASE: Final = "\x1b[K"  # the rest of the line
DEFAULT_COLUMNS: Final = 80  # of a terminal that reports no size
SEPARATOR: Final = ":::"
READ_AHEAD: Final = 1024  # a fast producer must not fill the memory
CHUNK_BYTES: Final = 1 << 16
PREFIX: Final = "doorman-map-"
LOCK: Final = "map"  # locked by the process of the folder; the kernel releases it however the process ends
# Not pathlib: an input need not be a path, and Path would normalize it.
_VALUES: Final[dict[str, Callable[[str, int], str]]] = {
    "{}": lambda text, _: text,
    "{.}": lambda text, _: os.path.splitext(text)[0],  # noqa: PTH122
    "{/}": lambda text, _: os.path.basename(text),  # noqa: PTH119
    "{//}": lambda text, _: os.path.dirname(text) or ".",  # noqa: PTH120
    "{/.}": lambda text, _: os.path.splitext(os.path.basename(text))[0],  # noqa: PTH119, PTH122
    "{#}": lambda _, number: str(number),
}
_PLACEHOLDER: Final = re.compile("|".join(map(re.escape, _VALUES)))


def split_command(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the command and its inputs; None for the inputs of standard input. Raises BadCommandLine."""
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
        if not shell and _is_command_line(words[0]):
            raise BadCommandLine(
                f"no program is named {words[0]!r}: give --shell to run it as a command line of a shell, "
                "or leave out the quotes around it"
            )
        self._words = list(words)
        self._shell = shell
        if not any(_PLACEHOLDER.search(word) for word in words):
            self._words.append("{}")

    def fill(self, text: str, number: int) -> list[str]:
        """Return the command for the input with that number; for a shell the input is quoted."""
        quote = shlex.quote if self._shell else str
        filled = [_PLACEHOLDER.sub(lambda found: quote(_VALUES[found[0]](text, number)), word) for word in self._words]
        return ["/bin/sh", "-c", " ".join(filled)] if self._shell else filled


def _is_command_line(word: str) -> bool:
    """Return whether a word names no program, but begins with the name of one: it is quoted as for GNU parallel."""
    first, *rest = word.split()[:2] or [""]
    return bool(rest) and shutil.which(word) is None and shutil.which(first) is not None


class Inputs:
    """The inputs in order. ``total`` is None until all are known; `read` makes an object that a thread fills."""

    def __init__(self, words: Sequence[str] | None) -> None:
        self.total = None if words is None else len(words)
        self.popped = 0
        self._queue: queue.Queue[str] = queue.Queue(READ_AHEAD if words is None else 0)
        for word in words or ():
            self._queue.put(word)

    @property
    def exhausted(self) -> bool:
        """Whether all inputs have been returned."""
        return self.popped == self.total

    def pop(self) -> str | None:
        """Return the next input without waiting; None if there is none, or none has arrived yet."""
        try:
            text = self._queue.get_nowait()
        except queue.Empty:
            return None
        self.popped += 1
        return text

    @classmethod
    def read(cls, descriptor: int, separator: bytes, wake: Callable[[], None]) -> Inputs:
        """Return inputs that a thread reads from a descriptor. The thread calls ``wake`` after each input."""
        inputs = cls(None)
        # Read the descriptor, not sys.stdin: a daemon thread that holds the lock of a buffered reader at interpreter
        # exit aborts the process.
        target = functools.partial(inputs._read, descriptor, separator, wake)
        threading.Thread(target=target, name="doorman-inputs", daemon=True).start()
        return inputs

    def _read(self, descriptor: int, separator: bytes, wake: Callable[[], None]) -> None:
        count = 0
        for line in filter(None, _split(descriptor, separator)):
            self._queue.put(os.fsdecode(line))  # waits while READ_AHEAD inputs are queued
            wake()
            count += 1
        self.total = count
        wake()


def _split(descriptor: int, separator: bytes) -> Iterator[bytes]:
    rest = b""
    # An error ends the input, too: the descriptor is closed, or is a terminal that belongs to another session.
    with contextlib.suppress(OSError):
        while chunk := os.read(descriptor, CHUNK_BYTES):
            *lines, rest = (rest + chunk).split(separator)
            yield from lines
    yield rest


class OutputPrinter:
    """Prints the output of each finished task as a whole, while the progress is hidden.

    folder -- where the tasks write their output; None: a temporary folder, whose files are removed once printed
    hidden -- returns a context manager that hides the progress
    """

    def __init__(
        self, folder: str | None, hidden: Callable[[], AbstractContextManager[None]], *, keep_order: bool
    ) -> None:
        try:
            self._temporary = _TemporaryFolder() if folder is None else None
        except OSError as error:
            raise BadCommandLine(
                f"cannot make a temporary folder for the outputs: {error.strerror}; set TMPDIR to a folder that this "
                "user may write, or give --log-path"
            ) from error
        self.folder = str(self._temporary.path) if self._temporary else folder
        self._keep_order, self._hidden = keep_order, hidden
        self._held: dict[int, tuple[Path, Path] | None] = {}
        self._next = 1
        self.closed = False  # the reader of standard output or standard error is gone

    def print_output(self, number: int, task: Task | None) -> None:
        """Print the output of the task of an input, in order if required; None: the input needed no task."""
        files = None if task is None else task.output
        if not self._keep_order:
            self._print(files)
            return
        # An input without a task is held as well: the numbers must have no gap.
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
                file.seek(-1, os.SEEK_END)
                if to.isatty() and file.read(1) != b"\n":
                    to.buffer.write(b"\n")  # Otherwise the bar, or its removal, would erase the last line.
            to.buffer.flush()
        except BrokenPipeError:
            self.closed = True
            discard_output(to)


class _TemporaryFolder:
    """A temporary folder. Making one also removes the folders that killed processes left behind."""

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
            except RemitError as error:
                # Another process found the folder before it was locked, and removes it: make another folder.
                if self.path.exists() and not isinstance(error, LocationInUse):
                    raise

    def close(self) -> None:
        # Remove it while it is locked: otherwise another process could lock it in between.
        shutil.rmtree(self.path, ignore_errors=True)
        self._lock.release()


class Counts(NamedTuple):
    """Numbers of inputs by state."""

    done: int
    total: int | None  # None until all inputs have been read
    failed: int
    running: int

    def __str__(self) -> str:
        total = "?" if self.total is None else str(self.total)
        return f"{self.done}/{total} done, {self.failed} failed, {self.running} running"


class ProgressLines:
    """Progress as lines on standard error."""

    max_wait = 60.0  # seconds after which `show` must be called again, even if nothing has changed

    def __init__(self) -> None:
        self._next = time.monotonic() + LINE_INTERVAL_S

    def show(self, counts: Counts) -> None:
        """Show the counts, but not more often than every `LINE_INTERVAL_S` seconds."""
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
    """Progress as the last line of a terminal.

    Only `show` draws it, and it changes no mode of the terminal: whatever ends or stops the process, nothing has to be
    restored.
    """

    max_wait = 1.0

    def __init__(self) -> None:
        super().__init__()
        self._started = time.monotonic()
        self._next = 0.0
        self._drawn = False

    def show(self, counts: Counts) -> None:
        """Draw the bar, but not more often than every `BAR_INTERVAL_S` seconds, and not from the background."""
        if time.monotonic() < self._next or not _in_foreground():
            return
        self._next = time.monotonic() + BAR_INTERVAL_S
        self._drawn = True
        self._write(f"\r{self._line(counts, _columns() - 1)}{ERASE}")

    @contextlib.contextmanager
    def hidden(self) -> Iterator[None]:
        """Erase the bar for the duration of a block, which may print. The next `show` draws it again."""
        self.close()
        yield
        self._next = 0.0

    def close(self) -> None:
        """Erase the bar."""
        if self._drawn:
            self._drawn = False
            self._write(f"\r{ERASE}")

    def _line(self, counts: Counts, width: int) -> str:
        elapsed = time.monotonic() - self._started
        parts = [f"{counts.done}/{'?' if counts.total is None else counts.total}"]
        if counts.failed:
            parts.append(f"{counts.failed} failed")
        parts += [f"{counts.running} running", _clock(elapsed)]
        if counts.total is not None and 0 < counts.done < counts.total:
            parts.append(f"{_clock(elapsed / counts.done * (counts.total - counts.done))} left")
        text = "  ".join(parts)
        cells = min(BAR_CELLS, width - len(text) - 2)
        if cells < MIN_BAR_CELLS:
            return text[: max(0, width)]
        full = 0 if not counts.total else cells * counts.done // counts.total
        try:
            FULL.encode(sys.stderr.encoding)
            return f"{FULL * full}{' ' * (cells - full)}  {text}"
        except UnicodeEncodeError:
            return f"{'#' * full}{' ' * (cells - full)}  {text}"

    def _write(self, text: str) -> None:
        # The terminal may be gone, or full of output that a stopped reader leaves there: a bar ends no work.
        with contextlib.suppress(OSError):
            sys.stderr.write(text)
            sys.stderr.flush()


def progress_on_stderr() -> ProgressLines:
    """Return a bar if standard error is a terminal that can erase a line, else lines."""
    return _ProgressBar() if sys.stderr.isatty() and os.environ.get("TERM") != "dumb" else ProgressLines()


def _in_foreground() -> bool:
    """Return whether this process may draw on its terminal: a job in the background leaves it to the other one."""
    try:
        return os.tcgetpgrp(sys.stderr.fileno()) == os.getpgrp()
    except OSError:  # It is not the controlling terminal, so no other job has it.
        return True


def _columns() -> int:
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns or DEFAULT_COLUMNS
    except OSError:
        return DEFAULT_COLUMNS


def _clock(seconds: float) -> str:
    minutes, rest = divmod(int(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02}:{rest:02}"
