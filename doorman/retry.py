"""Retries and restarts: whether a task gets another attempt, and after which delay."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, fields
from typing import Literal, TypeAlias, get_args

from doorman.errors import RestartedTooOften
from doorman.states import ABNORMAL, State
from remit.options import check_choice

__all__ = ["Backoff", "Intensity", "Restart", "RetryPolicy"]

Restart: TypeAlias = Literal["temporary", "transient", "permanent"]
"""``temporary``: never restart; ``transient``: after an abnormal end; ``permanent``: always."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Backoff:
    """Delay before the next attempt: ``first`` seconds, then ``factor`` times the previous one. Raises ValueError.

    most -- upper bound of the delay in seconds
    jitter -- share of the delay by which it varies at random in both directions, to spread tasks that failed together
    """

    first: float = 0.1
    factor: float = 2.0
    most: float = 30.0
    jitter: float = 0.1

    def __post_init__(self) -> None:
        for field in fields(self):
            _check_number(f"the backoff's {field.name}", getattr(self, field.name))
        if self.factor < 1:
            raise ValueError(f"the backoff's factor must be 1 or more, not {self.factor!r}")
        if self.most < self.first:
            raise ValueError(f"the backoff's most, {self.most!r} s, is below its first, {self.first!r} s")
        if self.jitter > 1:
            raise ValueError(f"the backoff's jitter must be from 0 to 1, not {self.jitter!r}")

    def seconds(self, failures: int, *, chance: float = 0.5) -> float:
        """Return the delay after successive ``failures``; ``chance`` (0 to 1) selects a value within the jitter."""
        try:
            planned = self.first * self.factor ** (failures - 1)
        except OverflowError:
            planned = self.most
        return min(self.most, min(self.most, planned) * (1 + self.jitter * (2 * chance - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Intensity:
    """At most ``restarts`` restarts within ``seconds`` seconds. Raises ValueError."""

    restarts: int = 3
    seconds: float = 5.0

    def __post_init__(self) -> None:
        if not isinstance(self.restarts, int) or self.restarts < 0:
            raise ValueError(f"the intensity's restarts must be 0 or more, not {self.restarts!r}")
        _check_number("the intensity's seconds", self.seconds)
        if not self.seconds:
            raise ValueError("the intensity's seconds must be greater than 0")


class RetryPolicy:
    """Applies the retry and restart options of one task. Raises TypeError, or ValueError if they contradict."""

    def __init__(self, *, retries: int, backoff: Backoff | None, restart: Restart, intensity: Intensity | None) -> None:
        if backoff is not None and not isinstance(backoff, Backoff):
            raise TypeError(f"backoff is a Backoff, such as Backoff(first=0.5), not {backoff!r}")
        check_choice("restart", restart, get_args(Restart))
        if intensity is not None and not isinstance(intensity, Intensity):
            raise TypeError(f"intensity is an Intensity, such as Intensity(restarts=3), not {intensity!r}")
        if retries and restart != "temporary":
            raise ValueError(f"retries contradict restart={restart!r}, which has no last attempt: give one of them")
        if intensity is not None and restart == "temporary":
            raise ValueError("intensity bounds restarts: also give restart='transient' or restart='permanent'")
        if backoff is not None and not retries and restart == "temporary":
            raise ValueError("backoff is the delay before another attempt: also give retries= or restart=")
        self._retries, self._backoff, self._restart = retries, backoff, restart
        self._intensity = intensity or Intensity()
        self.history: tuple[tuple[float, ...], int] = ((), 0)
        """Monotonic times of the last restarts, and the number of failures in a row. Replaced, never modified."""

    def delay(
        self, state: State, error: BaseException | None, *, attempt: int, ran: float | None, now: float
    ) -> float | None:
        """Return the seconds until the next attempt, after one that ended in ``state``; None if there is none.

        ``ran`` is the run time of its code in seconds, ``now`` a monotonic time. Raises RestartedTooOften.
        """
        restarts, failures = self.history
        if self._restart == "temporary":
            if state is not State.FAILED or attempt > self._retries:
                return None
        elif state not in ABNORMAL and not (state is State.DONE and self._restart == "permanent"):
            return None
        else:
            restarts = (*self._recent(restarts, now, error), now)
            if ran is not None and ran > self._intensity.seconds:
                failures = 0  # It ran long enough: this failure begins a new series.
        self.history = restarts, failures + 1
        return 0.0 if self._backoff is None else self._backoff.seconds(failures + 1, chance=random.random())

    def _recent(self, restarts: tuple[float, ...], now: float, error: BaseException | None) -> tuple[float, ...]:
        """Return the restarts that count. Raises RestartedTooOften if they leave no room for another one."""
        most, seconds = self._intensity.restarts, self._intensity.seconds
        recent = tuple(at for at in restarts if at > now - seconds)
        if len(recent) >= most:
            raise RestartedTooOften(
                f"it would be restarted more than {most} times within {seconds:g} s; "
                f"at last {'it returned' if error is None else f'{type(error).__name__}: {error}'}"
            ) from error
        return recent


def _check_number(what: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < math.inf:
        raise ValueError(f"{what} must be 0 or more, not {value!r}")
