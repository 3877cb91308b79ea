"""Captured: what a task writes that runs in the manager's own process, kept aside and told line by line after it."""

from __future__ import annotations

import contextlib
import os
import sys
import tempfile
from collections import deque
from collections.abc import Iterator
from typing import IO, TYPE_CHECKING, Final

from doorman.output.lines import Line, Lines
from doorman.output.stream import KEPT, told, wanted

if TYPE_CHECKING:
    from doorman.task import OnOutput, Task

__all__ = ["captured"]

STREAMS: Final = ("stdout", "stderr")
AT_ONCE: Final = 64 * 1024
"""Bytes that are read at a time of what was written."""


@contextlib.contextmanager
def captured(task: Task, listener: OnOutput | None) -> Iterator[None]:
    """A block in which the task writes, if it is to be streamed: its lines are told when it is over, however.

    Not through pipes: nobody would read them while the task runs, and a full one would be the end of it.
    """
    if not wanted(task, listener):
        yield
        return
    task.lines = kept = deque[Line](maxlen=KEPT)
    with contextlib.ExitStack() as files:
        written = [files.enter_context(tempfile.TemporaryFile()) for _ in STREAMS]
        try:
            with contextlib.ExitStack() as redirected:
                for number, (name, file) in enumerate(zip(STREAMS, written, strict=True), 1):
                    redirected.enter_context(_redirected(name, number, file.fileno()))
                yield
        finally:
            for name, file in zip(STREAMS, written, strict=True):
                for line in _lines(file):
                    kept.append(Line(name, line))
                    told(task, name, line, listener)


@contextlib.contextmanager
def _redirected(name: str, descriptor: int, to: int) -> Iterator[None]:
    """Have what is written to a stream, by Python or past it, go to another descriptor."""
    before = getattr(sys, name)
    with contextlib.suppress(AttributeError, OSError, ValueError):  # There may be none, or one that is closed.
        before.flush()
    try:
        kept = os.dup(descriptor)
    except OSError:
        kept = None
    os.dup2(to, descriptor)
    stream = open(os.dup(to), "w", encoding="utf-8", errors="backslashreplace", buffering=1)  # noqa: PTH123, SIM115
    setattr(sys, name, stream)
    try:
        yield
    finally:
        if getattr(sys, name) is stream:
            setattr(sys, name, before)
        with contextlib.suppress(ValueError):  # The task may have closed it.
            stream.close()
        if kept is None:
            os.close(descriptor)
        else:
            os.dup2(kept, descriptor)
            os.close(kept)


def _lines(file: IO[bytes]) -> Iterator[str]:
    cut = Lines()
    file.seek(0)
    while data := file.read(AT_ONCE):
        yield from cut.feed(data)
    yield from cut.feed(b"", last=True)
