"""Order: which of the waiting tasks start first, and which only after others."""

from __future__ import annotations

import pytest
from chores import stay
from managing import tick_until
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, Rule, State, SynchronousManager, Task
from doorman.errors import DependencyFailed, TaskCancelled


def fail() -> None:
    raise OSError("broken")


class Noted(Task):
    """A task that notes when it begins."""

    started: list[str] = []

    def _set_state(self, state: State) -> None:
        super()._set_state(state)
        if state is State.RUNNING:
            self.started.append(self.name)


@pytest.fixture
def began(monkeypatch) -> list[str]:
    names: list[str] = []
    monkeypatch.setattr(Noted, "started", names)
    return names


@pytest.fixture(params=["processes", "none"])
def one_by_one(request, short_path):
    """A manager that runs one at a time."""
    rules = [Rule(processes=1)]
    with (
        ProcessManager(f"unix://{short_path}/m", rules=rules, grace=1.0)
        if request.param == "processes"
        else SynchronousManager(rules=rules)
    ) as manager:
        yield manager


def test_higher_priority_starts_first_and_equal_ones_as_they_were_added(one_by_one, began):
    for name, priority in (("a", 0), ("b", -1), ("c", 5), ("d", 0), ("e", 5)):
        one_by_one.add_task(Noted(len, "", name=name, priority=priority, handler=name))
    one_by_one.run(DEADLINE)
    assert began == ["c", "e", "a", "d", "b"]


def test_one_that_is_held_back_does_not_hold_back_those_behind_it(one_by_one, began):
    one_by_one.add_rule(Rule(processes=0, handler="blocked"))
    blocked = one_by_one.add_task(Noted(len, "", name="blocked", handler="blocked", priority=9))
    asked = one_by_one.add_task(Noted(len, "", name="asked", can_run=lambda: False, priority=9))
    free = one_by_one.add_task(Noted(len, "", name="free"))
    assert free.result(DEADLINE) == 0
    assert one_by_one.waiting == (blocked, asked)
    assert "0 of 0 processes" in one_by_one.why(blocked)
    assert one_by_one.why(asked) == "its can_run says no"


def test_a_task_starts_when_those_before_it_are_done(one_by_one, began):
    first = one_by_one.add_task(Noted(len, "", name="first"))
    second = one_by_one.add_task(Noted(len, "", name="second", priority=-1))
    last = one_by_one.add_task(Noted(len, "abc", name="last", after=(first, second), priority=9))
    assert "it comes after 'first' (task" in one_by_one.why(last)
    assert "'second'" in one_by_one.why(last)
    assert last.result(DEADLINE) == 3
    assert began == ["first", "second", "last"]
    assert one_by_one.add_task(Task(len, "ab", after=[last])).result(DEADLINE) == 2


def test_what_comes_after_one_that_failed_is_cancelled_and_so_on(one_by_one):
    first = one_by_one.add_task(Task(fail))
    chain = [first]
    for number in range(2000):  # deeper than calls may be
        chain.append(one_by_one.add_task(Task(len, "", name=f"link{number}", after=[chain[-1]])))
    one_by_one.run(DEADLINE)
    assert {task.state for task in chain[1:]} == {State.CANCELLED}
    with pytest.raises(DependencyFailed, match=r"'link0' comes after <Task \d+ 'fail' failed") as raised:
        chain[1].result(0)
    assert isinstance(raised.value.__cause__, OSError)
    late = one_by_one.add_task(Task(len, "", after=[first]))
    with pytest.raises(TaskCancelled):
        late.result(DEADLINE)


def test_what_comes_after_one_that_is_cancelled_is_cancelled(one_by_one):
    first = one_by_one.add_task(Task(len, "", can_run=lambda: False))
    then = one_by_one.add_task(Task(len, "", after=[first]))
    gone = one_by_one.add_task(Task(len, "", after=[first]))
    assert gone.cancel()
    assert first.cancel()
    one_by_one.run(DEADLINE)
    assert not one_by_one.busy
    with pytest.raises(DependencyFailed):
        then.result(0)
    with pytest.raises(TaskCancelled) as raised:
        gone.result(0)
    assert not isinstance(raised.value, DependencyFailed)


def test_a_task_waits_for_the_last_try_of_the_one_before(one_by_one, tmp_path):
    from chores import fail_until

    first = one_by_one.add_task(Task(fail_until, tmp_path / "log", 2, retries=1))
    then = one_by_one.add_task(Task(len, "ab", after=[first]))
    assert then.result(DEADLINE) == 2


def test_tasks_of_nobody_of_others_and_of_themselves_are_refused(one_by_one):
    unknown = Task(len, "")
    with pytest.raises(ValueError, match="add that one first"):
        one_by_one.add_task(Task(len, "", after=[unknown]))
    with SynchronousManager() as other:
        theirs = other.add_task(Task(len, ""))
        with pytest.raises(ValueError, match="another manager's"):
            one_by_one.add_task(Task(len, "", after=[theirs]))
    one, two, three = Task(len, ""), Task(len, ""), Task(len, "")
    one.after, two.after, three.after = (three,), (one,), (two,)
    with pytest.raises(ValueError, match="come after each other"):
        one_by_one.add_task(one)
    assert not one_by_one.busy


def test_groups_may_come_after_tasks_of_earlier_groups(one_by_one):
    with GroupManager(one_by_one) as groups:
        first = groups.add_task(Task(len, "a"))
        groups.tick()
        second = groups.add_task(Task(len, "ab", after=[first]))
        third = groups.add_task(Task(len, "abc", after=[second, first]))
        assert third.result(DEADLINE) == 3


def test_leaving_the_manager_leaves_nobody_waiting(short_path, tmp_path):
    with ProcessManager(f"unix://{short_path}/m", grace=1.0) as manager:
        first = manager.add_task(Task(stay, tmp_path / "up"))
        then = manager.add_task(Task(len, "", after=[first]))
        last = manager.add_task(Task(len, "", after=[then]))
        tick_until(manager, (tmp_path / "up").exists)
    assert {task.state for task in (first, then, last)} == {State.CANCELLED}
