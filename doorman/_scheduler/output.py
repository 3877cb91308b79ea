"""The standard output and error of tasks: log files, and pipes whose lines are passed to listeners."""

from __future__ import annotations

import codecs
import contextlib
import errno
import fcntl
import logging
import os
import re
import select
import struct
import termios
from collections import deque
from pathlib import Path
from typing import TYPE_CHECKING, Final, NamedTuple

from doorman.errors import LaunchRefused
from doorman.process import absolute_path

if TYPE_CHECKING:
    from doorman.task import OnOutput, Task
    from remit.transport import Wakeable

logger = logging.getLogger("doorman")

MAX_LINE_CHARS: Final = 64 * 1024
"""Characters of the longest line for a listener; a longer one is split."""
READ_BYTES: Final = 64 * 1024
"""Most bytes that are read from one pipe in one tick; a faster task blocks on its full pipe."""
PIPES_PER_TICK: Final = 64
"""Most pipes that are read in one tick; the others follow in the next."""
KEPT_LINES: Final = 1000
"""Number of lines in `Task.lines`."""
_NO_ROOM: Final = {errno.EMFILE, errno.ENFILE}


class Line(NamedTuple):
    """One line of a task's output."""

    stream: str
    """``"stdout"`` or ``"stderr"``."""
    text: str
    """Without the end of the line; invalid UTF-8 is replaced by U+FFFD."""


class Lines:
    """Splits a stream of bytes into lines. An incomplete line is kept, up to MAX_LINE_CHARS characters."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun = ""

    def feed(self, data: bytes, *, last: bool = False) -> list[str]:
        """Return the lines that end in ``data``; with ``last`` also an incomplete one."""
        *whole, begun = (self._begun + self._decode(data, last)).split("\n")
        lines = [line.removesuffix("\r") for line in whole]
        if last and begun:
            lines.append(begun)
            begun = ""
        while len(begun) > MAX_LINE_CHARS:
            lines.append(begun[:MAX_LINE_CHARS])
            begun = begun[MAX_LINE_CHARS:]
        self._begun = begun
        if all(len(line) <= MAX_LINE_CHARS for line in lines):
            return lines
        return [line[at : at + MAX_LINE_CHARS] for line in lines for at in range(0, max(1, len(line)), MAX_LINE_CHARS)]


class Outputs(NamedTuple):
    """Descriptors for the standard output and error of one process; None to inherit the manager's."""

    stdout: int | None = None
    stderr: int | None = None

    def close(self) -> None:
        """Close the manager's copies, after the launch."""
        for descriptor in self:
            if descriptor is not None:
                os.close(descriptor)


class Logs:
    """A folder with two log files for each attempt, ``<name>-<attempt>.out`` and ``.err``.

    With ``shared`` all tasks append to ``stdout.log`` and ``stderr.log``. The process writes to the files itself:
    no output is lost when the process is killed or its manager dies. Without a folder tasks inherit the manager's
    standard output and error.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, shared: bool = False) -> None:
        self._folder = None if folder is None else Path(absolute_path(os.fspath(folder)))
        self.shared = shared
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        elif shared:
            raise ValueError("shared_log needs a folder: give log_path too")

    def paths(self, name: str, attempt: str) -> tuple[Path, Path] | None:
        """Return the paths of one attempt's log files; None without a folder."""
        if self._folder is None:
            return None
        if self.shared:
            return self._folder / "stdout.log", self._folder / "stderr.log"
        stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{attempt}"
        return self._folder / f"{stem}.out", self._folder / f"{stem}.err"

    def open(self, name: str, attempt: str) -> Outputs:
        """Open one attempt's files. Raises OSError."""
        paths = self.paths(name, attempt)
        if paths is None:
            return Outputs()
        # O_APPEND: processes that share a file do not overwrite each other, also after a rotation has truncated it.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        stdout = os.open(paths[0], flags, 0o644)
        try:
            return Outputs(stdout, os.open(paths[1], flags, 0o644))
        except OSError:
            os.close(stdout)
            raise


def is_streamed(task: Task, listener: OnOutput | None) -> bool:
    """Return whether a task's output is streamed: by its own option, else if its manager has a listener."""
    if task.detach:
        return False  # The process outlives its manager, which would read the pipes.
    own = task.on_output is not None or task.stream
    return bool(own) if task.stream is not None or own else listener is not None


def deliver_line(task: Task, stream: str, line: str, listener: OnOutput | None) -> None:
    """Call the listeners of the task and of its manager with a line."""
    for each in (task.on_output, listener):
        if each is not None:
            try:
                each(task, stream, line)
            except Exception as error:  # One listener must not stop the others.
                logger.error("a listener of the output of %r raised", task, exc_info=error)


class Streams:
    """The pipes of one manager's tasks, and their log files.

    Only `read` and `finish_attempt` read the pipes. A task that writes faster than its manager ticks blocks on its full
    pipe, so memory is bounded.
    """

    def __init__(self, logs: Logs, launcher: Wakeable, listener: OnOutput | None) -> None:
        self._logs = logs
        self.launcher = launcher
        self._listener = listener
        self._epoll: select.epoll | None = None
        self._pipes: dict[int, _Pipe] = {}
        self._by_attempt: dict[str, tuple[_Pipe, _Pipe]] = {}
        self._interrupted: list[_Pipe] = []

    @property
    def waker(self) -> Wakeable:
        """An object whose descriptor is readable when the launcher has events or a task has written to a pipe."""
        return self.launcher if self._epoll is None else self._epoll

    @property
    def pending(self) -> bool:
        """Whether an interrupt left lines that no listener has received."""
        return bool(self._interrupted)

    def open(self, task: Task, attempt: str) -> Outputs:
        """Return the descriptors for a process: pipes, log files, or none. Show the paths of the files in the task.

        Raises LaunchRefused if no descriptors are left, OSError for a file that cannot be opened.
        """
        task.output = self._logs.paths(task.name, attempt)
        with contextlib.ExitStack() as undone:
            try:
                files = self._logs.open(task.name, attempt)
                undone.callback(files.close)
                pipes, theirs = _open_pipes(task) if is_streamed(task, self._listener) else (None, files)
            except OSError as error:
                if error.errno in _NO_ROOM:
                    raise LaunchRefused(f"no descriptor is left for the task's output: {error}") from error
                raise
            undone.pop_all()
        if pipes is None:
            return theirs
        for pipe, file in zip(pipes, files, strict=True):
            pipe.copy = None if file is None else _Copy(file, whole=self._logs.shared)
            self._watch(pipe)
        self._by_attempt[attempt] = pipes
        return theirs

    def read(self) -> None:
        """Deliver the lines that tasks have written since the last call; never waits."""
        while self._interrupted:
            self._deliver(self._interrupted.pop())
        if not self._pipes or self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0, PIPES_PER_TICK):
            pipe = self._pipes.get(descriptor)
            if pipe is not None and pipe.closed:
                self._finish(pipe)  # It was interrupted.
            elif pipe is not None:
                self._read(pipe, READ_BYTES)

    def finish_attempt(self, attempt: str) -> None:
        """Deliver the remaining lines of an attempt whose process has ended, and close its pipes."""
        for pipe in self._by_attempt.get(attempt, ()):
            if self._pipes.get(pipe.descriptor) is pipe and not pipe.closed:
                # Only the bytes that are in the pipe now: a grandchild may go on writing without end.
                self._read(pipe, pipe.filled())
            if self._pipes.get(pipe.descriptor) is pipe:
                self._finish(pipe)
        # Last: after an interrupt above, the next call continues.
        self._by_attempt.pop(attempt, None)

    def close(self) -> None:
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes, self._by_attempt = {}, {}
        if self._epoll is not None:
            self._epoll.close()

    def _watch(self, pipe: _Pipe) -> None:
        if self._epoll is None:
            # Created with the first pipe: without streamed output the launcher's own descriptor is the waker.
            self._epoll = select.epoll()
            self._epoll.register(self.launcher.fileno(), select.EPOLLIN)
        self._epoll.register(pipe.descriptor, select.EPOLLIN)
        self._pipes[pipe.descriptor] = pipe

    def _read(self, pipe: _Pipe, most: int) -> None:
        """Read up to ``most`` bytes from a pipe; close it at its end of file."""
        while most > 0:
            try:
                data = os.read(pipe.descriptor, min(most, READ_BYTES))
            except BlockingIOError:
                return
            most -= len(data)
            if not data:
                self._finish(pipe)
                return
            pipe.feed(data)
            self._deliver(pipe)
            if len(data) < READ_BYTES:
                return

    def _finish(self, pipe: _Pipe) -> None:
        # Before close(): while a fork of this process has a copy, epoll would still report the descriptor.
        if self._epoll is not None:
            with contextlib.suppress(OSError):  # Unregistered before an interrupt.
                self._epoll.unregister(pipe.descriptor)
        pipe.feed(b"", last=True)
        pipe.close()
        del self._pipes[pipe.descriptor]
        self._deliver(pipe)

    def _deliver(self, pipe: _Pipe) -> None:
        """Call the listeners with each line. After an interrupt, as by Ctrl-C, `read` delivers the rest."""
        task, name = pipe.task, pipe.name
        try:
            while pipe.lines:
                line = pipe.lines.popleft()
                pipe.kept.append(Line(name, line))
                deliver_line(task, name, line, self._listener)
        finally:
            if pipe.lines:
                self._interrupted.append(pipe)


class _Pipe:
    """One stream of one attempt."""

    copy: _Copy | None = None

    def __init__(self, task: Task, name: str, descriptor: int, kept: deque[Line]) -> None:
        self.task, self.name, self.descriptor, self.kept = task, name, descriptor, kept
        # A file object, since its close() may be repeated: an interrupt may occur before the call is noted.
        self._file = open(descriptor, "rb", buffering=0)  # noqa: SIM115
        self.lines: deque[str] = deque()
        """Complete lines that no listener has received yet."""
        self._cut = Lines()

    @property
    def closed(self) -> bool:
        return self._file.closed

    def filled(self) -> int:
        """Return how many bytes are in the pipe now."""
        count: int = struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, b"\0" * 4))[0]
        return count

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Split data into lines, and copy it to the log file."""
        self.lines.extend(self._cut.feed(data, last=last))
        if self.copy is not None and not self.copy.write(data, last=last):
            self.copy = None

    def close(self) -> None:
        self._file.close()
        copy, self.copy = self.copy, None
        if copy is not None:
            copy.close()


class _Copy:
    """The log file of a stream. With ``whole`` it gets complete lines only, as other tasks write to it too."""

    def __init__(self, descriptor: int, *, whole: bool) -> None:
        self._descriptor = descriptor
        self._whole = whole
        self._begun = b""

    def write(self, data: bytes, *, last: bool) -> bool:
        """Append data; return False after an error, which is logged, and close the file."""
        ready = self._begun + data
        self._begun = b""
        if self._whole and not last and len(ready) - (end := ready.rfind(b"\n") + 1) < READ_BYTES:
            ready, self._begun = ready[:end], ready[end:]
        elif self._whole and last and ready:
            ready += b"\n"
        try:
            while ready:
                ready = ready[os.write(self._descriptor, ready) :]
        except OSError as error:
            logger.error("cannot write to a log of a task's output any more: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        os.close(self._descriptor)


def _open_pipes(task: Task) -> tuple[tuple[_Pipe, _Pipe], Outputs]:
    """Create the two pipes of an attempt; return the reading ends, and the writing ends. Raises OSError."""
    out = os.pipe()
    try:
        err = os.pipe()
    except OSError:
        Outputs(*out).close()
        raise
    task.lines = kept = deque[Line](maxlen=KEPT_LINES)
    # Only the reading ends: programs expect blocking standard output.
    for ours, _ in (out, err):
        os.set_blocking(ours, False)
    return (_Pipe(task, "stdout", out[0], kept), _Pipe(task, "stderr", err[0], kept)), Outputs(out[1], err[1])
