"""Retry: when a task is tried again, and when that is enough; without any process."""

from __future__ import annotations

from typing import Any

import pytest

from doorman import Backoff, Intensity, State, Task
from doorman.errors import RestartedTooOften
from doorman.retry import RetryPolicy

BROKEN = OSError("broken")


def comeback(**policy: Any) -> RetryPolicy:
    return RetryPolicy(**{"retries": 0, "backoff": None, "restart": "temporary", "intensity": None, **policy})


def pause(policy: RetryPolicy, state: State = State.FAILED, *, attempt: int = 1, ran: float = 0.0, now: float = 0.0):
    return policy.delay(state, None if state is State.DONE else BROKEN, attempt=attempt, ran=ran, now=now)


def test_waits_grow_by_the_factor_up_to_the_most():
    backoff = Backoff(first=1.0, factor=3.0, most=20.0)
    assert [backoff.seconds(failures) for failures in (1, 2, 3, 4, 10_000)] == [1.0, 3.0, 9.0, 20.0, 20.0]


def test_jitter_is_a_share_either_way_and_never_beyond_the_most():
    backoff = Backoff(first=1.0, most=2.0, jitter=0.1)
    assert [backoff.seconds(1, chance=chance) for chance in (0.0, 0.5, 1.0)] == [0.9, 1.0, 1.1]
    assert backoff.seconds(9, chance=1.0) == 2.0


@pytest.mark.parametrize(
    ("state", "again"),
    [
        (State.DONE, {"temporary": False, "transient": False, "permanent": True}),
        (State.FAILED, {"temporary": False, "transient": True, "permanent": True}),
        (State.EXPIRED, {"temporary": False, "transient": True, "permanent": True}),
        (State.LOST, {"temporary": False, "transient": True, "permanent": True}),
        (State.CANCELLED, {"temporary": False, "transient": False, "permanent": False}),
    ],
)
def test_what_is_restarted_after_which_end(state, again):
    assert {kind: pause(comeback(restart=kind), state) is not None for kind in again} == again


def test_retries_are_for_failures_and_end():
    policy = comeback(retries=2, backoff=Backoff(first=1.0, jitter=0.0))
    assert [pause(policy, attempt=attempt) for attempt in (1, 2, 3)] == [1.0, 2.0, None]
    assert pause(comeback(retries=2), State.EXPIRED) is None


def test_restarts_beyond_the_intensity_carry_the_last_error():
    policy = comeback(restart="transient", intensity=Intensity(restarts=2, seconds=5.0))
    assert [pause(policy, now=now) for now in (0.0, 1.0)] == [0.0, 0.0]
    with pytest.raises(RestartedTooOften, match=r"2 times within 5 s; at last OSError: broken") as often:
        pause(policy, now=4.9)
    assert often.value.__cause__ is BROKEN


def test_only_restarts_within_the_seconds_count():
    policy = comeback(restart="permanent", intensity=Intensity(restarts=1, seconds=5.0))
    assert [pause(policy, State.DONE, now=now) for now in (0.0, 5.0, 10.0)] == [0.0, 0.0, 0.0]
    with pytest.raises(RestartedTooOften, match="at last it returned"):
        pause(policy, State.DONE, now=14.9)


def test_a_restart_after_a_long_run_waits_as_after_the_first():
    policy = comeback(
        restart="transient", backoff=Backoff(first=1.0, jitter=0.0), intensity=Intensity(restarts=99, seconds=5.0)
    )
    waits = [pause(policy, ran=ran) for ran in (0.0, 0.0, 0.0, 6.0, 0.0)]
    assert waits == [1.0, 2.0, 4.0, 1.0, 2.0]


@pytest.mark.parametrize(
    ("kind", "values", "says"),
    [
        (Backoff, {"first": -1}, "first"),
        (Backoff, {"first": "1"}, "first"),
        (Backoff, {"factor": 0.5}, "factor"),
        (Backoff, {"first": 40.0}, "most"),
        (Backoff, {"most": float("nan")}, "most"),
        (Backoff, {"jitter": 2}, "jitter"),
        (Intensity, {"restarts": -1}, "restarts"),
        (Intensity, {"restarts": 1.5}, "restarts"),
        (Intensity, {"seconds": 0}, "seconds"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(kind, values, says):
    with pytest.raises(ValueError, match=says):
        kind(**values)


@pytest.mark.parametrize(
    ("policy", "error", "says"),
    [
        ({"restart": "always"}, ValueError, "temporary, transient, permanent"),
        ({"backoff": 0.5, "retries": 1}, TypeError, "Backoff"),
        ({"backoff": Backoff()}, ValueError, "retries="),
        ({"intensity": 3, "restart": "transient"}, TypeError, "Intensity"),
        ({"intensity": Intensity()}, ValueError, "restart="),
        ({"retries": 1, "restart": "permanent"}, ValueError, "give one of them"),
        ({"priority": 1.5}, TypeError, "priority"),
        ({"priority": True}, TypeError, "priority"),
        ({"after": "first"}, TypeError, "after"),
        ({"after": 3}, TypeError, "after"),
        ({"limits": {"cpu": 3}}, TypeError, "Limits"),
    ],
)
def test_a_task_refuses_a_policy_that_makes_no_sense(policy, error, says):
    with pytest.raises(error, match=says):
        Task(print, **policy)
