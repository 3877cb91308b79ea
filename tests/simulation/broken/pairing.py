"""Broken pairs: a seat for two, epochs that fence nobody off, and seats that nobody gets."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

from broken import Mutation
from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._protocol.leases import ExclusiveSlot
from remit._protocol.session import Session


def seat_everybody(self: ExclusiveSlot, who: Hashable) -> int:
    self.holder = who
    self.epoch += 1
    return self.epoch


def keep_the_epoch(self: ExclusiveSlot, who: Hashable, *, original: Any) -> int | None:
    epoch, self.epoch = self.epoch, self.epoch or 1
    claimed = original(self, who)
    self.epoch = epoch or 1
    return claimed and self.epoch


def trust_any_epoch(self: ExclusiveSlot, who: Hashable, epoch: int) -> bool:
    return self.holder is not None


def never_free(self: ExclusiveSlot, who: Hashable) -> bool:
    return False


def lapse_at_once(self: ExclusiveSlot, silence: float) -> bool:
    return self.holder is not None and silence > self._lease / 4


def never_lapse(self: ExclusiveSlot, silence: float) -> bool:
    return False


def never_check_membership(self: PairClient) -> None:
    return


def seat_one_that_is_lost(self: PairServer, session: Session, epoch: int) -> bool:
    return self.slot.is_held_by(session, epoch)


MUTATIONS: list[Mutation] = [
    (ExclusiveSlot, "claim", seat_everybody),
    (ExclusiveSlot, "claim", keep_the_epoch),
    (ExclusiveSlot, "is_held_by", trust_any_epoch),
    (ExclusiveSlot, "release", never_free),
    (ExclusiveSlot, "has_expired", lapse_at_once),
    (ExclusiveSlot, "has_expired", never_lapse),
    (PairClient, "_check_membership", never_check_membership),
    (PairServer, "_check", seat_one_that_is_lost),
]
