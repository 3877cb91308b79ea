"""Pairing: the one seat opposite a pair's owner: who has it, in which epoch, and when it is free again."""

from __future__ import annotations

from collections.abc import Hashable

__all__ = ["Seat"]


class Seat:
    """A seat for one. Each new holder begins an epoch: what says another one comes from somebody who lost the seat.

    Epochs count from ``first``: no other owner that the same guests may meet should ever have the same.
    """

    def __init__(self, *, lease: float, first: int = 0) -> None:
        self.epoch = first
        self.holder: Hashable | None = None
        self._lease = lease

    def claim(self, who: Hashable) -> int | None:
        """Take the seat and return its epoch; None if somebody else has it. Who has it may claim it again."""
        if self.holder is not None and self.holder is not who:
            return None
        if self.holder is None:
            self.holder = who
            self.epoch += 1
        return self.epoch

    def holds(self, who: Hashable, epoch: int) -> bool:
        """Whether this is the holder speaking, in the present epoch."""
        return self.holder is not None and self.holder is who and epoch == self.epoch

    def free(self, who: Hashable) -> bool:
        """Let the holder go; False if it did not hold the seat."""
        if self.holder is None or self.holder is not who:
            return False
        self.holder = None
        return True

    def lapsed(self, silence: float) -> bool:
        """Whether a holder of whom nothing was heard for ``silence`` seconds has lost the seat."""
        return self.holder is not None and silence > self._lease
