"""What a tick costs: what has happened since the last one, not what waits and runs. Calls are counted, not time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import pytest

from doorman import Backoff, ProcessManager, Rule, State, Task
from doorman.launcher import Event, LaunchFailed, Order


class Pending:
    """A launcher whose processes do not come until they are told to fail."""

    def __init__(self) -> None:
        self._orders: dict[str, Order] = {}
        self._events: list[Event] = []
        self._news = os.eventfd(0, os.EFD_NONBLOCK)

    def launch(self, order: Order) -> None:
        self._orders[order.attempt] = order

    def kill(self, attempt: str) -> None:
        pass

    def fail(self, count: int) -> None:
        """Have the first so many attempts end."""
        for attempt in list(self._orders)[:count]:
            del self._orders[attempt]
            self._events.append(LaunchFailed(attempt, "it was not to be"))

    def poll(self) -> list[Event]:
        events, self._events = self._events, []
        return events

    def fileno(self) -> int:
        return self._news

    def close(self, grace: float) -> None:
        os.close(self._news)


@pytest.fixture
def filled(short_path, monkeypatch) -> Callable[..., Any]:
    """Make a manager with so many tasks that are being launched and so many that wait."""
    monkeypatch.setattr("doorman._scheduler.supervisor.AT_ONCE", 1 << 20)

    @contextmanager
    def made(running: int, waiting: int, *rules: Rule) -> Iterator[tuple[ProcessManager, Pending]]:
        launcher = Pending()
        with ProcessManager(f"unix://{short_path}/{running}-{waiting}", launcher=launcher) as manager:
            for number in range(running):
                manager.add_task(Task(len, "", handler=f"h{number % 7}"))
            manager.tick()
            for rule in rules or [Rule(processes=running)]:
                manager.add_rule(rule)
            for number in range(waiting):
                manager.add_task(Task(len, "", handler=f"h{number % 7}", priority=number % 3))
            manager.tick()
            assert (len(manager.running), len(manager.waiting)) == (running, waiting)
            yield manager, launcher
            manager.stop()
            launcher.fail(1 << 20)

    return made


def calls(action: Callable[[], Any]) -> int:
    """Count the calls that an action makes."""
    count = 0

    def counted(_frame: FrameType, event: str, _argument: object) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    before = sys.getprofile()
    sys.setprofile(counted)
    try:
        action()
    finally:
        sys.setprofile(before)
    return count


def cheapest(action: Callable[[], Any]) -> int:
    """Count the calls of several tries: now and then a tick does more, such as keeping leases."""
    return min(calls(action) for _ in range(5))


@pytest.mark.parametrize(
    "rules", [[], [Rule(processes=0, handler=f"h{number}") for number in range(7)]], ids=["for-all", "for-each-handler"]
)
def test_a_tick_in_which_nothing_happens_costs_no_more_with_many_tasks(filled, rules):
    with filled(10, 0, *rules) as (manager, _):
        few = cheapest(manager.tick)
    with filled(1_000, 10_000, *rules) as (manager, _):
        many = cheapest(manager.tick)
    assert many <= 2 * few


def test_an_end_and_a_start_cost_no_more_with_many_tasks(filled):
    def one_ends_and_one_starts() -> None:
        launcher.fail(1)
        before = len(manager.waiting)
        cost.append(calls(manager.tick))
        assert len(manager.waiting) == before - 1

    costs = []
    for many in ((10, 10), (1_000, 10_000)):
        cost: list[int] = []
        with filled(*many) as (manager, launcher):
            for _ in range(3):
                one_ends_and_one_starts()
        costs.append(min(cost))
    assert costs[1] <= 2 * costs[0]


def test_only_tasks_with_questions_are_asked(filled):
    asked: list[str] = []
    with filled(10, 1_000) as (manager, _):
        before = cheapest(manager.tick)
        manager.add_task(Task(len, "", ignores_rules=True, can_run=lambda: bool(asked.append("can_run"))))
        manager.add_task(Task(len, "", cancel_when=lambda: bool(asked.append("cancel_when"))))
        manager.tick()
        asked.clear()
        cost = calls(manager.tick)
        assert sorted(asked) == ["can_run", "cancel_when"]
        assert cost <= before + 100


def test_rules_are_asked_once_for_all_tasks_of_a_handler(filled, monkeypatch):
    asked: list[str] = []
    holds_back = Rule.holds_back

    def counted(rule: Rule, handler: str, load: Any) -> str | None:
        asked.append(handler)
        return holds_back(rule, handler, load)

    monkeypatch.setattr(Rule, "holds_back", counted)
    with filled(7, 1_000, *(Rule(processes=1, handler=f"h{number}") for number in range(7))) as (manager, launcher):
        asked.clear()
        launcher.fail(1)
        manager.tick()
        assert len(manager.waiting) == 999
        assert len(asked) <= 2 * 7 * 7


def test_what_comes_after_others_or_backs_off_is_not_looked_at(filled):
    long = Backoff(first=3600, most=3600)
    with filled(10, 0) as (manager, launcher):
        before = cheapest(manager.tick)
        manager.remove_rule(Rule(processes=10))
        resting = [manager.add_task(Task(len, "", retries=1, backoff=long)) for _ in range(300)]
        manager.tick()
        first = manager.add_task(Task(len, ""))
        followers = [manager.add_task(Task(len, "", after=[first])) for _ in range(2_000)]
        launcher.fail(310)
        manager.tick()
        assert {task.state for task in (*followers, *resting)} == {State.WAITING}
        assert cheapest(manager.tick) <= 2 * before
