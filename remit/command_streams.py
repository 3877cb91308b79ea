"""Standard output and error of a command: what a full disk, a closed reader and a slow reader do to it."""

from __future__ import annotations

import atexit
import contextlib
import errno
import io
import os
import select
import signal
import stat
import sys
from collections.abc import Iterator
from typing import Any, Final, NoReturn, TextIO, cast

EXIT_WRITE_ERROR: Final = 1
STANDARD_ERROR: Final = "standard error"


class CommandStreams:
    """The state of the streams that `guarded_streams` has replaced."""

    def __init__(self, program: str) -> None:
        self._program = program
        self.failed = False
        """Whether output was lost because it could not be written; that has been reported."""
        self.lost: list[int] = []
        """Descriptors that could not be written to."""

    def discard_lost(self) -> None:
        """Redirect them to /dev/null: what an exit hook writes would end the program with exit code 120."""
        for descriptor in self.lost:
            _discard(descriptor)

    def report(self, name: str, error: OSError) -> None:
        """Report the first error of a stream on standard error."""
        failed_before, self.failed = self.failed, True
        if not failed_before and name != STANDARD_ERROR:  # It is within a write to itself, and lost anyway.
            with contextlib.suppress(OSError, ValueError):
                sys.stderr.write(f"{self._program}: cannot write to {name}: {error.strerror}\n")
                sys.stderr.flush()


class _Descriptor(io.RawIOBase):
    """Descriptor of a stream. BrokenPipeError means that the reader has gone; after another error output is dropped."""

    def __init__(self, descriptor: int, name: str, streams: CommandStreams) -> None:
        self._descriptor, self._name, self._streams = descriptor, name, streams
        self._is_terminal = os.isatty(descriptor)  # Now: a terminal that is gone is no terminal any more.
        self._is_device = stat.S_ISCHR(os.fstat(descriptor).st_mode)
        self._lost = False

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return self._is_terminal

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        while not self._lost:
            try:
                return os.write(self._descriptor, data)
            except BlockingIOError:  # A reader has set O_NONBLOCK, perhaps of a terminal that it shares.
                poll = select.poll()
                poll.register(self._descriptor, select.POLLOUT)
                poll.poll()
            except OSError as error:
                if error.errno == errno.EPIPE or (error.errno == errno.EIO and self._is_device):
                    raise BrokenPipeError(errno.EPIPE, f"the reader of {self._name} has gone") from error
                self._lost = True
                self._streams.lost.append(self._descriptor)
                self._streams.report(self._name, error)
        return len(data)


@contextlib.contextmanager
def guarded_streams(program: str) -> Iterator[CommandStreams]:
    """Guard `sys.stdout` and `sys.stderr` within the block, as far as they are files.

    A closed pipe and a closed terminal raise BrokenPipeError. A non-blocking stream is waited for. Another error, such
    as a full disk, is reported once, and the stream drops what follows.
    """
    streams = CommandStreams(program)
    replaced: dict[str, TextIO] = {}
    for attribute, name in (("stdout", "standard output"), ("stderr", STANDARD_ERROR)):
        stream = getattr(sys, attribute)
        buffer = getattr(stream, "buffer", None)
        if isinstance(getattr(buffer, "raw", buffer), io.FileIO):
            replaced[attribute] = stream
            setattr(sys, attribute, _guarded(stream, name, streams))
    try:
        yield streams
    finally:
        for attribute, stream in replaced.items():
            guarded = getattr(sys, attribute)
            with contextlib.suppress(OSError, ValueError):
                guarded.flush()
            setattr(sys, attribute, stream)


def _guarded(stream: TextIO, name: str, streams: CommandStreams) -> TextIO:
    text = cast("io.TextIOWrapper", stream)
    with contextlib.suppress(OSError):
        text.flush()
    raw = io.BufferedWriter(_Descriptor(text.fileno(), name, streams))
    return io.TextIOWrapper(
        raw, text.encoding, text.errors, newline="\n", line_buffering=text.line_buffering or raw.isatty()
    )


def discard_output(stream: TextIO) -> None:
    """Redirect a stream without a reader to /dev/null, so that its buffer does not fail again at exit."""
    _discard(stream.fileno())


def _discard(descriptor: int) -> None:
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, descriptor)
    os.close(null)


def end_by_interrupt() -> NoReturn:
    """End this process by SIGINT, so that a shell ends its loop or script as well."""
    with contextlib.suppress(Exception):
        atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGINT])
    signal.raise_signal(signal.SIGINT)
    os._exit(128 + signal.SIGINT)  # Only if SIGINT is not delivered.
