"""A protocol that is broken in one place does not get past the simulator."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from broken import Mutation, delivery, jobs, pairing, requests, subscriptions
from engine.simulator import SimulationFailed, simulate

SEEDS = 60
"""Histories in which a broken protocol has to be found out."""
FIRST = {
    "begin_anew": 10,
    "hold_an_old_loss_against_it": 9,
    "keep_what_was_purged": 11,
    "never_doubt": 41,
    "run_what_was_redelivered": 26,
    "seat_one_that_is_lost": 8,
    "TOKEN_BITS=0": 117,
}
"""Where the search begins for what only rare histories bring to light."""
MUTATIONS = [mutation for room in (delivery, requests, jobs, subscriptions, pairing) for mutation in room.MUTATIONS]


def name_of(mutation: Mutation) -> str:
    _, name, instead = mutation
    if not callable(instead) and not isinstance(instead, property):
        return f"{name}={instead}"
    function: Callable[..., Any] = instead.fget if isinstance(instead, property) else instead
    return function.__name__


@pytest.mark.parametrize(("owner", "name", "instead"), MUTATIONS, ids=[name_of(each) for each in MUTATIONS])
def test_a_broken_protocol_is_found_out(
    owner: Any, name: str, instead: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(owner, name, instead)
    with pytest.raises(SimulationFailed):
        simulate_many(FIRST.get(name_of((owner, name, instead)), 0))


def simulate_many(first: int) -> None:
    for seed in range(first, first + SEEDS):
        simulate(seed, events=2_000, clients=15)
