"""Stream: what tasks write, read from pipes by their manager's own tick and told line by line."""

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

if TYPE_CHECKING:
    from doorman.task import OnOutput, Task
    from remit.transport import Wakeable

__all__ = ["MAX_LINE_CHARS", "Line", "Lines", "Logs", "Outputs", "Streams", "deliver_line", "is_streamed"]


MAX_LINE_CHARS: Final = 64 * 1024
"""Characters of a line that are told at once; what is longer comes in several pieces."""


class Line(NamedTuple):
    """One line that a task wrote."""

    stream: str
    """``"stdout"`` or ``"stderr"``."""
    text: str
    """Without the end of the line; what is no UTF-8 is shown as U+FFFD."""


class Lines:
    """Cuts what arrives in any pieces into lines. What has no end yet waits, up to `LONGEST` characters."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun = ""

    def feed(self, data: bytes, *, last: bool = False) -> list[str]:
        """Return the lines that end in ``data``; with ``last`` also one that has no end."""
        *whole, begun = (self._begun + self._decode(data, last)).split("\n")
        lines = [line.removesuffix("\r") for line in whole]
        if last and begun:
            lines.append(begun)
            begun = ""
        while len(begun) > MAX_LINE_CHARS:
            lines.append(begun[:MAX_LINE_CHARS])
            begun = begun[MAX_LINE_CHARS:]
        self._begun = begun
        return lines if all(len(line) <= MAX_LINE_CHARS for line in lines) else [*_pieces(lines)]


def _pieces(lines: list[str]) -> list[str]:
    return [line[at : at + MAX_LINE_CHARS] for line in lines for at in range(0, max(1, len(line)), MAX_LINE_CHARS)]


class Outputs(NamedTuple):
    """The descriptors to give to one process; None to share the manager's own."""

    stdout: int | None = None
    stderr: int | None = None

    def close(self) -> None:
        """Close the manager's own copies once the process has its."""
        for descriptor in self:
            if descriptor is not None:
                os.close(descriptor)


class Logs:
    """A folder with two files for each task, ``<name>-<attempt>.out`` and ``.err``; or two for all tasks together.

    ``shared`` makes it ``stdout.log`` and ``stderr.log``, to which every task appends. The kernel writes straight into
    the files: nothing is lost when a process is killed or its manager dies. Without a folder tasks share the manager's
    own standard output and error, as any child does.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, shared: bool = False) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self.shared = shared
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        elif shared:
            raise ValueError("shared_log needs a folder to be in: give log_path too")

    def paths(self, name: str, attempt: str) -> tuple[Path, Path] | None:
        """Return where one attempt's output and errors go; None without a folder."""
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
        # Appending, so that those who share a file do not write over each other, nor what was rotated away.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        stdout = os.open(paths[0], flags, 0o644)
        try:
            return Outputs(stdout, os.open(paths[1], flags, 0o644))
        except OSError:
            os.close(stdout)
            raise


logger = logging.getLogger("doorman")

READ_BYTES: Final = 64 * 1024
"""Bytes that are read from one pipe in one tick; what it holds beyond that makes the task wait."""
PIPES_PER_TICK: Final = 64
"""Pipes that are read in one tick; the others have their turn in the next."""
KEPT_LINES: Final = 1000
"""Lines that `Task.lines` keeps."""
_NO_ROOM = {errno.EMFILE, errno.ENFILE}


def is_streamed(task: Task, listener: OnOutput | None) -> bool:
    """Whether a task's output is to be streamed: as the task says, or else whether its manager has a listener."""
    if task.detach:
        return False  # It outlives its manager, and with it the pipes.
    own = task.on_output is not None or task.stream
    return bool(own) if task.stream is not None or own else listener is not None


def deliver_line(task: Task, stream: str, line: str, listener: OnOutput | None) -> None:
    """Give a line to the task's listener, and to the manager's."""
    for each in (task.on_output, listener):
        if each is not None:
            try:
                each(task, stream, line)
            except Exception as error:  # One listener must not stop the others.
                logger.error("a listener of the output of %r raised", task, exc_info=error)


class Streams:
    """The pipes of one manager's tasks, and the files that get a copy. Nothing is read but in `read` and `end`.

    A task that writes faster than its manager ticks finds its pipe full, and waits: memory is bounded.
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
        """What is readable when the launcher has something to say or a task has written something."""
        return self.launcher if self._epoll is None else self._epoll

    @property
    def pending(self) -> bool:
        """Whether there are lines that were read and not told."""
        return bool(self._interrupted)

    def is_streamed(self, task: Task) -> bool:
        """Whether a task's output is to be streamed: as the task says, or else the manager."""
        return is_streamed(task, self._listener)

    def open(self, task: Task, attempt: str) -> Outputs:
        """Return what is to be a process's output: pipes, files, or the manager's own.

        Raises LaunchRefused if there is no descriptor left for them, OSError for a file that cannot be opened.
        """
        with contextlib.ExitStack() as undone:
            try:
                files = self._logs.open(task.name, attempt)
                undone.callback(files.close)
                pipes, theirs = _open_pipes(task) if self.is_streamed(task) else (None, files)
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

    def files(self, task: Task, attempt: str) -> tuple[Path, Path] | None:
        """Return the files of an attempt's output; None where there are none."""
        return self._logs.paths(task.name, attempt)

    def read(self) -> None:
        """Tell what tasks have written since the last time; never waits."""
        while self._interrupted:
            self._deliver(self._interrupted.pop())
        if not self._pipes or self._epoll is None:
            return
        for descriptor, _ in self._epoll.poll(0, PIPES_PER_TICK):
            pipe = self._pipes.get(descriptor)
            if pipe is not None:
                self._read(pipe, READ_BYTES)

    def finish_attempt(self, attempt: str) -> None:
        """Tell what is left of an attempt whose process has ended, and close its pipes."""
        for pipe in self._by_attempt.pop(attempt, ()):
            if self._pipes.get(pipe.descriptor) is pipe:
                # As much as is in it now: a grandchild that went on writing could keep us here for ever.
                self._read(pipe, pipe.filled())
            if self._pipes.get(pipe.descriptor) is pipe:
                self._finish(pipe)

    def close(self) -> None:
        """Let go of everything."""
        for pipe in self._pipes.values():
            pipe.close()
        self._pipes, self._by_attempt = {}, {}
        if self._epoll is not None:
            self._epoll.close()

    def _watch(self, pipe: _Pipe) -> None:
        if self._epoll is None:
            self._epoll = select.epoll()
            self._epoll.register(self.launcher.fileno(), select.EPOLLIN)
        self._epoll.register(pipe.descriptor, select.EPOLLIN)
        self._pipes[pipe.descriptor] = pipe

    def _read(self, pipe: _Pipe, most: int) -> None:
        """Take up to ``most`` bytes from a pipe; its end, if that is what is there, ends it."""
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
        # Unregistered while open: a fork of ours may hold it, and then the kernel would go on telling of it.
        if self._epoll is not None:
            self._epoll.unregister(pipe.descriptor)
        del self._pipes[pipe.descriptor]
        pipe.feed(b"", last=True)
        pipe.close()
        self._deliver(pipe)

    def _deliver(self, pipe: _Pipe) -> None:
        """Give the lines to those who listen. Whoever is interrupted, as by Ctrl-C, goes on with the next line."""
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
        self.lines: deque[str] = deque()
        """What was read and has not been told."""
        self._cut = Lines()

    def filled(self) -> int:
        """Return how many bytes are in it now."""
        count: int = struct.unpack("i", fcntl.ioctl(self.descriptor, termios.FIONREAD, b"\0" * 4))[0]
        return count

    def feed(self, data: bytes, *, last: bool = False) -> None:
        """Take in what was read."""
        self.lines.extend(self._cut.feed(data, last=last))
        if self.copy is not None and not self.copy.write(data, last=last):
            self.copy = None

    def close(self) -> None:
        """Close our end, and the file."""
        os.close(self.descriptor)
        if self.copy is not None:
            self.copy.close()


class _Copy:
    """The file that gets what a stream tells as it was written; ``whole`` lines if others write to it too."""

    def __init__(self, descriptor: int, *, whole: bool) -> None:
        self._descriptor = descriptor
        self._whole = whole
        self._begun = b""

    def write(self, data: bytes, *, last: bool) -> bool:
        """Append; False if that failed: then it is over, and said once."""
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
            logger.error("a log of a task's output cannot be written any more: %s", error)
            self.close()
            return False
        return True

    def close(self) -> None:
        """Close the file."""
        os.close(self._descriptor)


def _open_pipes(task: Task) -> tuple[tuple[_Pipe, _Pipe], Outputs]:
    """Make the two pipes of an attempt: our ends, and those for the process. Raises OSError."""
    out = os.pipe()
    try:
        err = os.pipe()
    except OSError:
        Outputs(*out).close()
        raise
    task.lines = kept = deque[Line](maxlen=KEPT_LINES)
    for ours, _ in (out, err):
        os.set_blocking(ours, False)
    return (_Pipe(task, "stdout", out[0], kept), _Pipe(task, "stderr", err[0], kept)), Outputs(out[1], err[1])
