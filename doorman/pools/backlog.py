"""Backlog: the calls that no worker has yet, in their order."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from doorman.pools.call import Call

__all__ = ["Backlog"]


class Backlog:
    """What waits in a pool. `add` and `cancel` are safe from any thread, beside the one that takes."""

    def __init__(self) -> None:
        self._calls: deque[Call] = deque()
        self._closed = False
        self._error: Exception | None = None

    def __len__(self) -> int:
        return len(self._calls)

    def add(self, call: Call) -> None:
        """Let a call wait behind all others; or cancel it, after `close`, or settle it, after `fail`."""
        self._calls.append(call)
        self._settle()

    def take(self, most: int) -> list[Call]:
        """Return up to ``most`` calls that nobody has cancelled; from now on they cannot be."""
        taken: list[Call] = []
        while len(taken) < most and (call := self._next()) is not None:
            if call.begin():
                taken.append(call)
        return taken

    def put_back(self, calls: Iterable[Call]) -> None:
        """Let calls that were not begun wait again, before all others; or cancel them, after `close`."""
        back = list(calls)
        for call in back:
            call.wait_again()
        self._calls.extendleft(reversed(back))
        self._settle()

    def cancel(self) -> int:
        """Cancel what waits; return how many were not cancelled before."""
        cancelled = 0
        while (call := self._next()) is not None:
            cancelled += not call.cancelled() and call.cancel()
            call.begin()  # It cannot; but those who wait for several futures are told only now.
        return cancelled

    def close(self) -> None:
        """Cancel what waits, and from now on what is put back."""
        self._closed = True
        self.cancel()

    def fail(self, error: Exception) -> None:
        """Settle what waits with an error, and from now on what comes."""
        self._error = error
        while (call := self._next()) is not None:
            if call.set_running_or_notify_cancel():
                call.set_exception(error)

    def _settle(self) -> None:
        """Looked at after a call was put there: another thread may have closed meanwhile, and looked before."""
        if self._error is not None:
            self.fail(self._error)
        elif self._closed:
            self.cancel()

    def _next(self) -> Call | None:
        try:
            return self._calls.popleft()
        except IndexError:
            return None  # There is none, or another thread has just cancelled them all.
