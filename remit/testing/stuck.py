"""Stuck: a thread beside a check's own: what it raised, and where it is if it does not end."""

from __future__ import annotations

import sys
import threading
import traceback
from pathlib import Path
from types import TracebackType

__all__ = ["Catcher", "where_is"]


class Catcher:
    """Keeps the error that a block ends with, whichever it is."""

    def __init__(self) -> None:
        self.error: BaseException | None = None

    def __enter__(self) -> Catcher:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        self.error = self.error or error
        return True


def where_is(thread: threading.Thread) -> str:
    """Say which line a thread is in: the innermost of a check's, and the innermost of all."""
    frame = sys._current_frames().get(thread.ident or 0)
    stack = traceback.extract_stack(frame) if frame is not None else []
    ours = [each for each in stack if Path(each.filename).parent == Path(__file__).parent]
    return " in ".join(f"{Path(each.filename).name}:{each.lineno} {each.name}" for each in [*ours[-1:], *stack[-1:]])
