"""Fault injection: an exception, or a call, at the n-th line of the project that a call executes in this thread.

An exception stands for Ctrl-C or the time limit of a job runner, a call for a finalizer or a signal handler.
"""

from __future__ import annotations

import gc
import itertools
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from importlib.util import find_spec
from pathlib import Path
from types import CodeType, FrameType
from typing import Any

PACKAGES = ("remit", "doorman", "remit_zeromq", "remit_redis", "remit_nng")
# Where they are imported from: the checkout, or the folder of an installation.
FOLDERS = tuple(str(Path(spec.origin).parent) + "/" for each in PACKAGES if (spec := find_spec(each)) and spec.origin)


class Interrupted(BaseException):
    """The injected exception; like KeyboardInterrupt it is no `Exception`."""


def interrupt() -> None:
    """Raise `Interrupted`: an action of `call_with`."""
    raise Interrupted


class Alarmed(Exception):
    """The injected exception of a class that is an `Exception`, as a job runner raises it at its time limit."""


_classes = itertools.cycle((Interrupted, Alarmed))


def interrupt_by_turns() -> None:
    """Raise `Interrupted` and `Alarmed` by turns."""
    raise next(_classes)


def alarm() -> None:
    """Raise `Alarmed`."""
    raise Alarmed


class Injection:
    """What happened in one call."""

    def __init__(self) -> None:
        self.lines = 0
        """Lines of the project that the call executed, up to the injected one."""
        self.place: str | None = None
        """File, line and function of the injected line; None if the call had ended before it."""
        self.value: Any = None
        self.error: BaseException | None = None
        """What the call raised, unless it was the injected exception."""
        self.interrupted = False


def call_with(
    action: Callable[[], object], line: int, call: Callable[[], Any], *, folders: tuple[str, ...] = FOLDERS
) -> Injection:
    """Run ``call``; run ``action`` before the ``line``-th line (from 1) of the project that this thread executes."""
    outcome = Injection()
    ours: dict[CodeType, bool] = {}

    def trace(frame: FrameType, event: str, _: object) -> Any:
        if outcome.place is not None:
            return None
        code = frame.f_code
        if event == "call":
            known = ours.get(code)
            if known is None:
                known = ours[code] = code.co_filename.startswith(folders)
            return trace if known else None
        if event == "line":
            outcome.lines += 1
            if outcome.lines == line:
                outcome.place = f"{code.co_filename}:{frame.f_lineno} in {code.co_qualname}"
                sys.settrace(None)
                action()
        return trace

    previous = sys.gettrace()
    gc.disable()  # Python ignores what the action raises in a finalizer that the collector runs.
    sys.settrace(trace)
    try:
        outcome.value = call()
    except (Interrupted, Alarmed):
        outcome.interrupted = True
    except Exception as error:  # The test judges it.
        outcome.error = error
    finally:
        sys.settrace(previous)
        gc.enable()
    return outcome


def within(call: Callable[[], Any], seconds: float = 10.0) -> Any:
    """Return what ``call`` returns, or raises, in another thread; fail if it takes longer."""
    ended: Future[Any] = Future()

    def run() -> None:
        try:
            ended.set_result(call())
        except BaseException as error:
            ended.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return ended.result(seconds)
