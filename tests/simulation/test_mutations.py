"""The simulator detects each mutant of the protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from broken import Mutation, apply, delivery, jobs, pairing, requests, subscriptions
from engine.simulator import SimulationFailed, simulate

SEEDS = 60
"""Seeds within which each mutant must be detected."""
FIRST = {
    "begin_anew": 11,
    "hold_an_old_loss_against_it": 9,
    "keep_the_token": 18,
    "keep_what_was_purged": 11,
    "never_lapse": 4,
    "run_what_was_redelivered": 32,
    "seat_one_that_is_lost": 29,
    "TOKEN_BITS=0": 271,
}
"""First seed for mutants that only rare histories reveal."""
MUTATIONS = [mutation for room in (delivery, requests, jobs, subscriptions, pairing) for mutation in room.MUTATIONS]


def name_of(mutation: Mutation) -> str:
    _, name, replacement = mutation
    if not callable(replacement) and not isinstance(replacement, property):
        return f"{name}={replacement}"
    function: Callable[..., Any] = replacement.fget if isinstance(replacement, property) else replacement
    return function.__name__


@pytest.mark.parametrize("mutation", MUTATIONS, ids=[name_of(each) for each in MUTATIONS])
def test_a_broken_protocol_is_found_out(mutation: Mutation, monkeypatch: pytest.MonkeyPatch) -> None:
    apply(mutation, monkeypatch)
    # A mutant of the job queue may also raise KeyError.
    with pytest.raises((SimulationFailed, KeyError)):
        simulate_many(FIRST.get(name_of(mutation), 0))


def simulate_many(first: int) -> None:
    for seed in range(first, first + SEEDS):
        simulate(seed, events=2_000, clients=15)
