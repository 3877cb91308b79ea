"""Queue of requests that are executed one at a time and completely, in spite of interrupts and nested calls."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import TypeAlias, TypeVar

Request: TypeAlias = Callable[[bool], object]
"""Called with False; after an interrupt within it called again, with True."""
Result = TypeVar("Result")


class RequestQueue:
    """Executes requests in order, in the thread of their owner.

    An interrupt is an exception at any line: that of Ctrl-C, or of another signal handler. The request that it leaves
    is called again, before the interrupt is raised; after a second one by the next `run`, unless that is an
    `Exception`: then it is a fault of the request. ``repair`` is called before, to rebuild what is derived from other
    state.

    A nested call, such as that of a listener, a finalizer or a signal handler, only queues its request.
    """

    def __init__(self, repair: Callable[[], object]) -> None:
        self._requests: deque[Request] = deque()
        self.append, self.extend = self._requests.append, self._requests.extend
        """Queue one request, or several, for the next `run`."""
        self._repair = repair
        self._begun: Request | None = None  # The request in front, once it was called.
        self._active = False
        self.damaged = False
        """Whether an interrupt may have left derived state incomplete."""

    @property
    def pending(self) -> bool:
        """Whether requests wait for `run`."""
        return bool(self._requests)

    @property
    def active(self) -> bool:
        """Whether a request or a guarded function is executed: a call from a listener or a signal handler is nested."""
        return self._active

    def put(self, request: Request) -> None:
        """Queue a request and execute all queued ones, unless the call is nested. Raises what they raise."""
        self._requests.append(request)
        self.run()

    def run(self) -> None:
        """Execute the queued requests, unless the call is nested. Raises what they raise."""
        if (self._requests or self.damaged) and not self._active:
            self.guard(self._run_all)

    def guard(self, function: Callable[..., Result], *arguments: object) -> Result:
        """Return ``function(*arguments)``. Other calls only queue until it returns."""
        if self._active:
            return function(*arguments)
        # No `with` and no `finally`: an exception may be raised at their lines too, and would leave the flag set.
        try:
            self._active = True
            if self.damaged:
                self._repair()
                self.damaged = False
            result = function(*arguments)
            self._active = False
        except BaseException:
            self._active, self.damaged = False, True
            raise
        return result

    def _run_all(self) -> None:
        while self._requests:
            request = self._requests[0]
            again, self._begun = self._begun is request, request
            try:
                request(again)
            except BaseException:
                # Complete it before the caller sees the interrupt; if there is another one here, the next `run` does.
                self._repair()
                try:
                    request(True)
                except Exception as error:
                    self._requests.popleft()  # A fault and no interrupt: it would be raised each time.
                    raise error from error.__cause__
                self._requests.popleft()
                raise
            self._requests.popleft()
