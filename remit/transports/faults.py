"""Faults: what is asked for, and what chance decides for each frame."""

from __future__ import annotations

import random
from dataclasses import dataclass
from typing import NamedTuple

__all__ = ["Dice", "Fate", "Faults"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Faults:
    """What a location asks for. All but ``seed`` and ``delay`` are probabilities for each frame that is sent."""

    seed: int = 0
    loss: float = 0.0
    """The frame vanishes."""
    duplication: float = 0.0
    """It arrives twice."""
    reorder: float = 0.0
    """The next frame for the same peer overtakes it."""
    delay: float = 0.0
    """Seconds that it is held back at the most."""
    cut: float = 0.0
    """The connection ends, and the frame with it; another one begins."""


class Fate(NamedTuple):
    """What is to become of one frame."""

    cut: bool
    copies: int
    overtaken: bool
    delay: float


class Dice:
    """Decides as ``faults`` say. ``role`` sets the decisions of a server apart from those of its clients."""

    def __init__(self, faults: Faults, role: str) -> None:
        self._faults = faults
        self._random = random.Random(f"{faults.seed} {role}")

    def throw(self) -> Fate:
        """Decide. As many numbers are drawn for each frame, so that one option leaves the others' decisions alone."""
        faults = self._faults
        loss, twice, overtaken, cut, delay = (self._random.random() for _ in range(5))
        copies = 0 if loss < faults.loss else 2 if twice < faults.duplication else 1
        return Fate(cut < faults.cut, copies, overtaken < faults.reorder, delay * faults.delay)
