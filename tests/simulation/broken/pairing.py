"""Broken pairs: a seat for two, epochs that fence nobody off, and seats that nobody gets."""

from __future__ import annotations

from collections.abc import Hashable

from broken import Mutation
from remit.patterns.meeting import Guest, Owner
from remit.protocol.pairing import Seat
from remit.protocol.session import Session


def seat_everybody(self: Seat, who: Hashable) -> int:
    self.holder = who
    self.epoch += 1
    return self.epoch


def keep_the_epoch(self: Seat, who: Hashable) -> int | None:
    epoch, self.epoch = self.epoch, self.epoch or 1
    claimed = original_claim(self, who)
    self.epoch = epoch or 1
    return claimed and self.epoch


def trust_any_epoch(self: Seat, who: Hashable, epoch: int) -> bool:
    return self.holder is not None


def never_free(self: Seat, who: Hashable) -> bool:
    return False


def lapse_at_once(self: Seat, silence: float) -> bool:
    return self.holder is not None and silence > self._lease / 4


def never_lapse(self: Seat, silence: float) -> bool:
    return False


def never_doubt(self: Guest) -> None:
    return


def seat_one_that_is_lost(self: Owner, session: Session, epoch: int) -> bool:
    return self.seat.holds(session, epoch)


original_claim = Seat.claim

MUTATIONS: list[Mutation] = [
    (Seat, "claim", seat_everybody),
    (Seat, "claim", keep_the_epoch),
    (Seat, "holds", trust_any_epoch),
    (Seat, "free", never_free),
    (Seat, "lapsed", lapse_at_once),
    (Seat, "lapsed", never_lapse),
    (Guest, "_doubt", never_doubt),
    (Owner, "_present", seat_one_that_is_lost),
]
