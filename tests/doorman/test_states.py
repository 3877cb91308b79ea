"""States: the ways between them."""

from __future__ import annotations

import pytest

from doorman.states import ENDED, WAYS, State


def test_a_state_equals_its_text():
    assert State.RUNNING == "running"
    assert f"{State.RUNNING}" == "running"


@pytest.mark.parametrize("end", sorted(ENDED))
@pytest.mark.parametrize("state", list(State))
def test_nothing_follows_an_end(end, state):
    assert state not in WAYS[end]


@pytest.mark.parametrize("state", [state for state in State if state not in ENDED])
def test_every_end_can_be_reached_from_every_state_before_it(state):
    reached, new = {state}, {state}
    while new:
        new = {after for before in new for after in WAYS[before]} - reached
        reached |= new
    assert reached >= ENDED


def test_no_code_runs_without_a_proof():
    before_running = {state for state in State if State.RUNNING in WAYS[state]}
    assert before_running == {State.WAITING, State.PROVING}  # the former: tasks of this very process
    assert State.DONE not in WAYS[State.LAUNCHING]
    assert State.DONE not in WAYS[State.PROVING]
