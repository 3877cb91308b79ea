"""Waiters: whoever waits for an answer: one thread that serves the link itself, or whoever has a future."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Protocol, TypeAlias

from remit.errors import LinkClosed

__all__ = ["Answer", "Eventually", "Pose", "Waiter"]


class Waiter(Protocol):
    """Who waits for an answer. What is said to one who is `over` already goes nowhere."""

    @property
    def over(self) -> bool:
        """Whether it waits no more."""
        ...

    def give(self, value: Any) -> None:
        """Take the answer."""
        ...

    def fail(self, error: BaseException) -> None:
        """Take it that there is none."""
        ...


Pose: TypeAlias = Callable[[Waiter], None]
"""Asks for somebody."""


class Answer:
    """What one thread waits for that serves the link itself: it needs no lock, and nobody has to be notified."""

    __slots__ = ("_error", "_value", "over")

    def __init__(self) -> None:
        self.over = False
        self._value: Any = None
        self._error: BaseException | None = None

    def give(self, value: Any) -> None:
        """Keep the answer."""
        self._value, self.over = value, True

    def fail(self, error: BaseException) -> None:
        """Keep why there is none."""
        if not self.over:
            self._error, self.over = error, True

    def result(self) -> Any:
        """Return the answer, or raise why there is none. Raises LinkClosed if that is because the client closes."""
        if self._error is not None:
            raise self._error
        if not self.over:
            raise LinkClosed("the client was closed before the request was answered")
        return self._value


class Eventually:
    """Who waits is whoever has the future, in any thread."""

    __slots__ = ("future",)

    def __init__(self) -> None:
        self.future: Future[Any] = Future()

    @property
    def over(self) -> bool:
        """Whether it has its answer, or was cancelled."""
        return self.future.done()

    def give(self, value: Any) -> None:
        """Pass the answer on."""
        if self.future.set_running_or_notify_cancel():
            self.future.set_result(value)

    def fail(self, error: BaseException) -> None:
        """Pass on why there is none."""
        if not self.over and self.future.set_running_or_notify_cancel():
            self.future.set_exception(error)
