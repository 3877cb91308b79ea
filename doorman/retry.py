"""Retries and restarts: whether a task gets another attempt, and after which delay. The caller passes the time."""

from __future__ import annotations

import math
import random
from collections import deque
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from doorman.errors import RestartedTooOften
from doorman.states import ABNORMAL, State

__all__ = ["Backoff", "Intensity", "Restart", "RetryPolicy"]

Restart: TypeAlias = Literal["temporary", "transient", "permanent"]
"""When a task is restarted: never; after an abnormal end; always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delay before the next attempt: ``first`` seconds, then ``factor`` times the previous one. Raises ValueError.

    most -- upper bound of the delay in seconds
    jitter -- share of the delay by which it varies at random in both directions; spreads tasks that failed together
    """

    first: float = 0.1
    factor: float = 2.0
    most: float = 30.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(f"the backoff's {field.name}", getattr(self, field.name))
        if self.factor < 1:
            raise ValueError(f"the backoff's factor is 1 or more, so that delays do not shrink: {self.factor!r}")
        if self.most < self.first:
            raise ValueError(f"the backoff's most, {self.most!r} s, is below its first, {self.first!r} s")
        if self.jitter > 1:
            raise ValueError(f"the backoff's jitter is a share from 0 to 1, not {self.jitter!r}")

    def seconds(self, failures: int, *, chance: float = 0.5) -> float:
        """Return the delay after ``failures`` in a row; ``chance`` from 0 to 1 selects it within the jitter."""
        try:
            planned = self.first * self.factor ** (failures - 1)
        except OverflowError:
            planned = self.most
        return min(self.most, min(self.most, planned) * (1 + self.jitter * (2 * chance - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """Bound on restarts: ``restarts`` times within any ``seconds``. Raises ValueError."""

    restarts: int = 3
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.restarts, int) or self.restarts < 0:
            raise ValueError(f"the intensity's restarts is a number of restarts, not {self.restarts!r}")
        _check_number("the intensity's seconds", self.seconds)
        if not self.seconds:
            raise ValueError("the intensity's seconds is above 0")


class RetryPolicy:
    """Applies the retry and restart options of one task. Raises TypeError, ValueError if they contradict."""

    def __init__(self, *, retries: int, backoff: Backoff | None, restart: Restart, intensity: Intensity | None) -> None:
        if retries < 0:
            raise ValueError(f"retries is not negative: {retries!r}")
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff is a Backoff, such as Backoff(first=0.5), not {backoff!r}")
        if restart not in get_args(Restart):
            raise ValueError(f"restart is one of {', '.join(get_args(Restart))}, not {restart!r}")
        if intensity is not None and not isinstance(intensity, Intensity):
            raise TypeError(f"intensity is an Intensity, such as Intensity(restarts=3), not {intensity!r}")
        if retries and restart != "temporary":
            raise ValueError(f"retries end a task, restart={restart!r} does not: give one of them")
        if intensity is not None and restart == "temporary":
            raise ValueError("intensity bounds restarts: give also restart='transient' or restart='permanent'")
        if backoff is not None and not retries and restart == "temporary":
            raise ValueError("backoff is for what is tried again: give also retries= or restart=")
        self._retries, self._backoff, self._restart = retries, backoff, restart
        self._intensity = intensity or Intensity()
        self._restarts: deque[float] = deque()
        self._failures = 0

    def delay(
        self, state: State, error: BaseException | None, *, attempt: int, ran: float | None, now: float
    ) -> float | None:
        """Return the seconds until the next attempt, after one that ended in ``state``; None if there is none.

        ``ran`` are the seconds that its code ran, ``now`` is a monotonic time. Raises RestartedTooOften.
        """
        if self._restart == "temporary":
            if state is not State.FAILED or attempt > self._retries:
                return None
        elif state not in ABNORMAL and not (state is State.DONE and self._restart == "permanent"):
            return None
        else:
            self._count_restart(now, error)
            if ran is not None and ran > self._intensity.seconds:
                self._failures = 0  # It ran long enough to count as started: this failure begins a new series.
        self._failures += 1
        return 0.0 if self._backoff is None else self._backoff.seconds(self._failures, chance=random.random())

    def _count_restart(self, now: float, error: BaseException | None) -> None:
        most, seconds = self._intensity.restarts, self._intensity.seconds
        while self._restarts and self._restarts[0] <= now - seconds:
            self._restarts.popleft()
        if len(self._restarts) >= most:
            raise RestartedTooOften(
                f"it would be restarted more than {most} times within {seconds:g} s; "
                f"at last {'it returned' if error is None else f'{type(error).__name__}: {error}'}"
            ) from error
        self._restarts.append(now)


def _check_number(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{what} is a number that is not negative, not {value!r}")
