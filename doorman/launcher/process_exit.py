"""Leaving: how a forked child ends, as a fresh program would but without tearing the interpreter down."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, NoReturn, TextIO

__all__ = ["ExitGuard", "ExitHooks", "exit_code"]


_FAILED = 1  # exit code after an exception, as of the interpreter itself
_LARGEST = 1 << 63  # of numbers beyond, which no C long holds, the interpreter makes -1
_FLUSH_FAILED = 120  # exit code if standard output cannot be flushed, as of the interpreter itself


class ExitGuard:
    """A block that never returns to what is around it: its end, however it comes, is the end of the process."""

    code: int | None = 0
    """The exit code if the block ends without an exception."""

    def __enter__(self) -> ExitGuard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> NoReturn:
        code = _FAILED
        try:
            code = (self.code or 0) if error is None else _code_of(error)
            _wait_for_threads()
            atexit._run_exitfuncs()
        finally:
            # Not the interpreter's own end: it takes eight times as long as the whole life of a small child.
            os._exit(_flush() or code & 0xFF)


class ExitHooks:
    """The exit hooks at the moment of a fork: the zygote's run once in the zygote, and a child starts without them.

    A hook of a preloaded module may remove a directory that all children share. Those that every process needs are
    put back. The names with underscores are how multiprocessing does the same.
    """

    def __init__(self) -> None:
        self._finalizers: dict[Any, Any] = {}
        self._of_each: list[Callable[[], object]] = []
        modules = sys.modules
        if "weakref" in modules:
            finalize: Any = modules["weakref"].finalize
            self._finalizers.update(finalize._registry)
            finalize._registry.clear()
            finalize._registered_with_atexit = False
        if "logging" in modules:
            self._of_each.append(modules["logging"].shutdown)
        if "multiprocessing.util" in modules:
            self._of_each.append(modules["multiprocessing.util"]._exit_function)
        self._others = atexit._ncallbacks() > len(self._of_each)

    def clear_inherited(self) -> None:
        """Forget, in a new child, the hooks that came with the fork."""
        if self._others:
            atexit._clear()
            for hook in self._of_each:
                atexit.register(hook)

    def run(self) -> None:
        """Run them all, in the zygote, at its end."""
        if self._finalizers:
            sys.modules["weakref"].finalize._registry.update(self._finalizers)
        atexit._run_exitfuncs()


def _code_of(error: BaseException) -> int:
    """Three cases: the program asked for it; Ctrl-C, which others must see as a signal; an error."""
    if isinstance(error, SystemExit):
        return exit_code(error)
    traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    return _FAILED


def exit_code(leaving: SystemExit) -> int:
    """Return what the interpreter would make of ``sys.exit(...)``, and print what it would print."""
    if leaving.code is None:
        return 0
    if isinstance(leaving.code, int):
        return leaving.code & 0xFF if -_LARGEST <= leaving.code < _LARGEST else 0xFF
    print(leaving.code, file=sys.stderr)  # noqa: T201 - what the interpreter does with a text, even an empty one
    return _FAILED


def _wait_for_threads() -> None:
    """Wait for threads that are no daemons, as the interpreter does; whoever launched this sets the bound."""
    if _thread._count() > 0:
        threading: Any = sys.modules["threading"]
        threading._shutdown()


def _flush() -> int:
    code = 0 if _flushed(sys.stdout) else _FLUSH_FAILED
    _flushed(sys.stderr)
    return code


def _flushed(stream: TextIO | None) -> bool:
    try:
        if stream is not None:
            stream.flush()
    except (OSError, ValueError):
        return stream is None or stream.closed
    return True
