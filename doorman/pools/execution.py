"""Execution: one call after the other in a worker: run within its limits, its progress told, its end made bytes."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import resource
from collections.abc import Callable
from typing import Any

from doorman.errors import NotInTask
from doorman.policy.limits import Limits
from doorman.pools.confinement import Confinement
from doorman.pools.parcel import Kind
from doorman.progress import Progress, Reporter
from doorman.result import failed
from doorman.travel import pickled

__all__ = ["Execution", "resident"]


class Execution:
    """Runs calls. ``tell`` is called with the number of the call and its progress, in any thread."""

    def __init__(self, limits: Limits | None, tell: Callable[[int, Progress], None]) -> None:
        self._confinement = None if limits is None else Confinement(limits)
        self._tell = tell
        self._number = 0
        self._reporter: Reporter | None = None
        self._owner = os.getpid()

    def run(self, number: int, data: bytes) -> tuple[int, bytes]:
        """Run a call; return what came of it, behind whose last progress nothing is told."""
        self._number = number
        kind, data = self._outcome(data)
        if self._reporter is not None:
            self._reporter.flush()
            self._reporter = None
        return kind, data

    def report(self, progress: Progress) -> None:
        """Tell how far the call that runs has come, or let it wait for what is newer. Raises NotInTask in a fork."""
        if os.getpid() != self._owner:
            raise NotInTask("a fork of the worker has no progress of its own: report from the call itself")
        reporter = self._reporter
        if reporter is None:
            reporter = self._reporter = Reporter(functools.partial(self._tell, self._number))
        reporter.report(progress)

    def roomy(self) -> contextlib.AbstractContextManager[None]:
        """A block of the worker's that runs beside a call, which may have used up all that it may have."""
        return contextlib.nullcontext() if self._confinement is None else self._confinement.lifted()

    def forked(self) -> None:
        """In a fork of a call's: no other thread is here."""
        if self._confinement is not None:
            self._confinement.forked()

    def _outcome(self, data: bytes) -> tuple[int, bytes]:
        """Run a call; return what came of it."""
        try:
            value = self._call(data)
        except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
            return Kind.RAISED, failed(error).encode()
        try:
            return Kind.RETURNED, pickled(value)
        except BaseException as error:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
            reason = TypeError(f"the call returned a {type(value).__qualname__} that cannot be pickled: {error}")
            reason.__cause__ = error
            return Kind.RAISED, failed(reason).encode()

    def _call(self, data: bytes) -> Any:
        if self._confinement is None:
            fn, args, kwargs = pickle.loads(data)
            return fn(*args, **kwargs)
        with self._confinement:
            fn, args, kwargs = pickle.loads(data)
            return fn(*args, **kwargs)


def resident() -> int:
    """Return the bytes of memory that this process has resident now."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - after each call
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
