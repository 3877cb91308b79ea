"""The exit of a forked child: exit code, exit hooks and flush as usual, but without the interpreter's teardown."""

from __future__ import annotations

import _thread
import atexit
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import Any, Final, NoReturn, TextIO

# The interpreter's own exit codes after an exception, and if standard output cannot be flushed.
_FAILED: Final = 1
_FLUSH_FAILED: Final = 120
_LONG_LIMIT: Final = 1 << 63  # The interpreter exits with -1 for a number that does not fit a C long.


class ExitGuard:
    """Context manager that exits the process at the end of its block, even if the block raises.

    A child of the zygote must never return into the zygote's code.
    """

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
            # Not sys.exit(): the interpreter's teardown takes longer than all other work of a small child, and copies
            # pages shared with the zygote because it frees objects in them: 306 instead of 2,350 children a second.
            os._exit(_flush() or code & 0xFF)


class ExitHooks:
    """The exit hooks that preloaded modules have registered in the zygote.

    They run once, in the zygote, because a hook may remove a directory that all children share. A child keeps only the
    hooks that each process needs. multiprocessing uses the same private names for its forks.
    """

    def __init__(self) -> None:
        self._finalizers: dict[Any, Any] = {}
        self._each_process: list[Callable[[], object]] = []
        modules = sys.modules
        if "weakref" in modules:
            finalize: Any = modules["weakref"].finalize
            self._finalizers.update(finalize._registry)
            finalize._registry.clear()
            finalize._registered_with_atexit = False
        if "logging" in modules:
            self._each_process.append(modules["logging"].shutdown)
        if "multiprocessing.util" in modules:
            self._each_process.append(modules["multiprocessing.util"]._exit_function)
        self._others = atexit._ncallbacks() > len(self._each_process)

    @staticmethod
    def count() -> int:
        """Return the number of hooks of this process, without those that each process needs."""
        modules = sys.modules
        finalizers = len(modules["weakref"].finalize._registry) if "weakref" in modules else 0
        return finalizers + atexit._ncallbacks() - ("logging" in modules) - ("multiprocessing.util" in modules)

    def clear_inherited(self) -> None:
        """Clear the inherited hooks in a new child."""
        if self._others:
            atexit._clear()
            for hook in self._each_process:
                atexit.register(hook)

    def run(self) -> None:
        """Run all hooks, at the end of the zygote."""
        if self._finalizers:
            sys.modules["weakref"].finalize._registry.update(self._finalizers)
        atexit._run_exitfuncs()


def _code_of(error: BaseException) -> int:
    """Print an exception that has left the block and return the exit code; after a KeyboardInterrupt, end by SIGINT."""
    if isinstance(error, SystemExit):
        return exit_code(error)
    traceback.print_exception(error)
    if isinstance(error, KeyboardInterrupt):
        _flush()
        signal.signal(signal.SIGINT, signal.SIG_DFL)
        signal.raise_signal(signal.SIGINT)
    return _FAILED


def exit_code(request: SystemExit) -> int:
    """Return the exit code that the interpreter derives from ``sys.exit(...)``, and print a message as it does."""
    if request.code is None:
        return 0
    if isinstance(request.code, int):
        return request.code & 0xFF if -_LONG_LIMIT <= request.code < _LONG_LIMIT else 0xFF
    print(request.code, file=sys.stderr)  # noqa: T201 - as the interpreter does, even for an empty text
    return _FAILED


def _wait_for_threads() -> None:
    """Wait for non-daemon threads, as the interpreter does. Only the expiry of the task bounds the wait."""
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
