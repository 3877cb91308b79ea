"""Violations of the transport contract, and helpers that raise them."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Final

__all__ = ["ErrorRecorder", "NotApplicable", "Violation", "current_line", "expect", "expect_frames"]


SHOWN_BYTES: Final = 40
"""Bytes of a frame that an error shows."""


class Violation(AssertionError):
    """Raised by a check when a transport breaks the contract; its text says what was seen."""


class NotApplicable(Exception):
    """Raised by a check that cannot be tried here; its text says why."""


def expect(fact: object, otherwise: str) -> None:
    """Raise a Violation that says what was seen, unless something is so."""
    if not fact:
        raise Violation(otherwise)


def expect_frames(got: Sequence[bytes], sent: Sequence[bytes], *, lossy: bool = False) -> None:
    """Raise a Violation unless the frames that arrived are those that were sent, or some of them if it may lose."""
    if list(got) == list(sent):
        return
    rest = iter(sent)
    if lossy and all(any(frame == each for each in rest) for frame in got):
        return
    first = next((number for number, pair in enumerate(zip(got, sent, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        first = min(len(got), len(sent))
    seen = _shown(got[first]) if first < len(got) else "nothing more"
    wanted = _shown(sent[first]) if first < len(sent) else "nothing more"
    what = (
        "lost" if len(got) < len(sent) else "doubled or made up" if len(got) > len(sent) else "altered or out of order"
    )
    raise Violation(
        f"{what}: {len(sent)} frames sent, {len(got)} arrived; number {first} is {seen} instead of {wanted}"
    )


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= SHOWN_BYTES else f"{data[:SHOWN_BYTES]!r}... ({len(data)} bytes)"


class ErrorRecorder:
    """Keeps the error that a block ends with, whichever it is."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> ErrorRecorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = self.error or error
        return True


def current_line(thread: threading.Thread) -> str:
    """Say which line a thread is in: the innermost of a check's, and the innermost of all."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if Path(each.filename).parent == Path(__file__).parent]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in [*ours[-1:], *stack[-1:]])
