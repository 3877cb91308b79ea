"""Broken pairs: a seat for two, epochs that fence nobody off, and seats that nobody gets."""

from __future__ import annotations

from typing import Any

from broken import Mutation
from remit._patterns.exclusive_pair import PairClient, PairServer
from remit._protocol.session import Session


def seat_everybody(self: PairServer, session: Session, lease: float, *, original: Any) -> tuple[int, float]:
    self.holder = None
    return original(self, session, lease)


def keep_the_epoch(self: PairServer, session: Session, lease: float, *, original: Any) -> tuple[int, float]:
    epoch = self.epoch
    original(self, session, lease)
    self.epoch = epoch or 1
    return self.epoch, self._lease


def trust_any_epoch(self: PairServer, session: Session, epoch: int) -> bool:
    return self.holder is not None


def never_free(self: PairServer, session: Session) -> None:
    return


def lapse_at_once(self: PairServer, caught_up: float, *, original: Any) -> None:
    original(self, caught_up + self._lease * 3 / 4)


def never_lapse(self: PairServer, caught_up: float) -> None:
    return


def never_check_membership(self: PairClient) -> None:
    return


def seat_one_that_is_lost(self: PairServer, session: Session, epoch: int) -> bool:
    return self._holds_slot(session, epoch)


MUTATIONS: list[Mutation] = [
    (PairServer, "_join", seat_everybody),
    (PairServer, "_join", keep_the_epoch),
    (PairServer, "_holds_slot", trust_any_epoch),
    (PairServer, "on_session_closed", never_free),
    (PairServer, "advance", lapse_at_once),
    (PairServer, "advance", never_lapse),
    (PairClient, "_check_membership", never_check_membership),
    (PairServer, "_check", seat_one_that_is_lost),
]
