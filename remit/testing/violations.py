"""Violations of the transport contract, and helpers that raise them."""

from __future__ import annotations

import sys
import threading
import traceback
from collections.abc import Sequence
from pathlib import Path


class Violation(AssertionError):
    """Raised by a check when a transport violates the contract; the text describes what was observed."""


class NotApplicable(Exception):
    """Raised by a check that cannot run here; the text gives the reason."""


def expect(fact: object, otherwise: str) -> None:
    """Raise a Violation that describes the observation, unless the fact holds."""
    if not fact:
        raise Violation(otherwise)


def expect_frames(got: Sequence[bytes], sent: Sequence[bytes], *, lossy: bool = False) -> None:
    """Raise a Violation unless the frames received are those sent or, if ``lossy``, some of them in order."""
    if list(got) == list(sent):
        return
    # `in` on an iterator consumes it up to the match, so this tests for a subsequence in linear time.
    rest = iter(sent)
    if lossy and all(any(frame == each for each in rest) for frame in got):
        return
    pairs = enumerate(zip(got, sent, strict=False))
    first = next((number for number, (one, other) in pairs if one != other), min(len(got), len(sent)))
    seen, wanted = (_shown(frames[first]) if first < len(frames) else "missing" for frames in (got, sent))
    fewer, more = len(got) < len(sent), len(got) > len(sent)
    what = "lost" if fewer else "repeated or invented" if more else "altered or out of order"
    raise Violation(
        f"{what}: {len(sent)} frames were sent, {len(got)} received; "
        f"frame {first} received is {seen}, frame {first} sent is {wanted}"
    )


def _shown(data: bytes) -> str:
    # Frames of many megabytes would fill a report.
    return repr(data) if len(data) <= 40 else f"{data[:40]!r}... ({len(data)} bytes)"


class ErrorRecorder:
    """Context manager that suppresses every exception of its block and keeps the first one."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> ErrorRecorder:
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> bool:
        self.error = self.error or error
        return True


def current_line(thread: threading.Thread) -> str:
    """Return the line that a thread executes: the innermost one of this package, and the innermost of all."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if Path(each.filename).parent == Path(__file__).parent]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in [*ours[-1:], *stack[-1:]])
