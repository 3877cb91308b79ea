"""Groups: group after group, whatever becomes of the members."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator

import pytest
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, Rule, State, SynchronousManager, Task, current_task
from doorman.errors import ResultTimeout, TaskAlreadyAdded, TaskCancelled, TaskNotPicklable


@pytest.fixture(params=["processes", "synchronous"])
def groups(request: pytest.FixtureRequest) -> Iterator[GroupManager]:
    """A group manager over each kind of manager."""
    if request.param == "synchronous":
        inner = SynchronousManager()
    else:
        inner = ProcessManager(f"unix://{request.getfixturevalue('short_path')}/m")
    with GroupManager(inner) as groups:
        yield groups


@pytest.fixture
def processes(short_path) -> Iterator[GroupManager]:
    with GroupManager(ProcessManager(f"unix://{short_path}/m")) as groups:
        yield groups


class Watched(Task):
    """A task that keeps what became of it in a list for the whole test."""

    def __init__(self, heard: list[str], name: str, fn: Callable[..., object] = str, **policy: object) -> None:
        super().__init__(fn, name=name, **policy)
        self.heard = heard

    def enter(self, state: State) -> None:
        super().enter(state)
        if state is State.RUNNING or self.done():
            self.heard.append(f"{self.name} {state}")


def run(groups: GroupManager) -> None:
    groups.run(DEADLINE)
    assert not groups.tick()


def fail() -> None:
    raise ValueError("on purpose")


def begin(groups: GroupManager, task: Task) -> None:
    """Tick until the task's own code may run."""
    deadline = time.monotonic() + DEADLINE
    while task.state is not State.RUNNING:
        assert groups.tick(), f"ended without {task}"
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {task}"
        groups.wait(0.05)


def test_a_group_begins_when_the_one_before_has_ended(groups):
    heard: list[str] = []
    for group in (["a1", "a2", "a3"], ["b1"], ["c1", "c2"]):
        groups.add_group([Watched(heard, name) for name in group])
    run(groups)
    assert [word[0] for word in heard] == ["a"] * 6 + ["b"] * 2 + ["c"] * 4


def test_a_failed_member_holds_nobody_up(groups):
    heard: list[str] = []
    groups.add_group([Watched(heard, "a1", lambda: 1 / 0), Watched(heard, "a2")])
    groups.add_group([Watched(heard, "b1")])
    run(groups)
    assert "a1 failed" in heard
    assert heard[-2:] == ["b1 running", "b1 done"]


def test_the_next_group_waits_for_the_retries_of_a_member(groups):
    heard: list[str] = []

    def second_time_lucky() -> None:
        assert current_task().attempt == 2

    groups.add_group([Watched(heard, "a", second_time_lucky, retries=1)])
    groups.add_group([Watched(heard, "b")])
    run(groups)
    assert heard == ["a running", "a running", "a done", "b running", "b done"]


def test_empty_groups_are_passed_over(groups):
    groups.add_group([])
    task = groups.add_task(Task(len, "abc"))
    groups.add_group([])
    groups.add_group([])
    run(groups)
    assert task.result() == 3
    assert groups.groups == ()


def test_nothing_to_do_is_told_at_once(groups):
    assert not groups.tick()
    groups.add_group([])
    groups.run()
    assert not groups.tick()


def test_a_group_may_be_added_while_another_runs_or_after_all_have_ended(groups):
    heard: list[str] = []
    first = groups.add_task(Watched(heard, "a"))
    groups.tick()
    groups.add_task(Watched(heard, "b"))
    run(groups)
    groups.add_task(Watched(heard, "c"))
    run(groups)
    assert heard == [f"{name} {state}" for name in "abc" for state in ("running", "done")]
    assert first.state is State.DONE


def test_groups_tell_what_has_not_begun(groups):
    tasks = [groups.add_task(Task(len, "abc")) for _ in range(2)]
    assert groups.groups == ((tasks[0],), (tasks[1],))
    run(groups)
    assert groups.groups == ()


# -- adding ----------------------------------------------------------------------------------------------------


def test_a_member_that_cannot_travel_is_told_before_anything_runs(groups):
    good = Task(len, "abc")
    with pytest.raises(TaskNotPicklable, match="argument 1 <unlocked"):
        groups.add_group([good, Task(print, threading.Lock())])
    assert groups.groups == ()
    assert not groups.tick()
    assert good.state is State.WAITING
    assert groups.add_task(good).result(DEADLINE) == 3  # It was let go.


def test_a_member_can_be_added_only_once(groups):
    task = Task(len, "abc")
    with pytest.raises(TaskAlreadyAdded):
        groups.add_group([task, task])
    groups.add_task(task)
    with pytest.raises(TaskAlreadyAdded):
        groups.add_task(task)
    with pytest.raises(TaskAlreadyAdded):
        groups.manager.add_task(task)
    run(groups)
    with pytest.raises(TaskAlreadyAdded):
        groups.add_task(task)


def test_arguments_are_those_of_the_moment_when_the_group_was_added(processes):
    numbers = [1, 2]
    processes.add_task(Task(len, "abc"))
    task = processes.add_task(Task(sum, numbers))
    numbers.append(100)
    run(processes)
    assert task.result() == 3


def test_nothing_can_be_added_after_the_end(groups):
    groups.close()
    with pytest.raises(ValueError, match="closed"):
        groups.add_task(Task(len, "abc"))
    groups.close()


# -- waiting for one, cancelling one ---------------------------------------------------------------------------


def test_the_result_of_a_later_group_drives_those_before(groups):
    heard: list[str] = []
    groups.add_task(Watched(heard, "a"))
    groups.add_task(Watched(heard, "b"))
    last = groups.add_task(Task(len, "abc"))
    assert last.result(DEADLINE) == 3
    assert heard == ["a running", "a done", "b running", "b done"]


def test_the_result_of_a_later_group_can_time_out(processes):
    processes.add_task(Task(signal.pause))
    later = processes.add_task(Task(len, "abc"))
    with pytest.raises(ResultTimeout, match="waiting"):
        later.result(0.05)
    assert processes.groups == ((later,),)


def test_a_task_whose_group_has_not_begun_can_be_cancelled(groups):
    first = groups.add_task(Task(len, "abc"))
    dropped, kept = groups.add_group([Task(fail), Task(len, "ab")])
    assert dropped.cancel()
    assert dropped.state is State.CANCELLED
    with pytest.raises(TaskCancelled):
        dropped.result()
    assert not dropped.cancel()
    assert not groups.cancel(dropped)
    run(groups)
    assert (first.result(), kept.result()) == (3, 2)


def test_a_group_all_of_whose_members_were_cancelled_is_passed_over(groups):
    only = groups.add_task(Task(fail))
    after = groups.add_task(Task(len, "abc"))
    assert groups.cancel(only)
    run(groups)
    assert after.result() == 3


def test_cancelling_what_runs_lets_the_next_group_begin(processes):
    task = processes.add_task(Task(signal.pause))
    after = processes.add_task(Task(len, "abc"))
    begin(processes, task)
    assert task.cancel()
    run(processes)
    assert task.state is State.CANCELLED
    assert after.result() == 3


def test_a_wait_is_no_wait_when_the_next_group_may_begin(processes, monkeypatch):
    """As after a cancellation between two ticks: nothing that the inner manager's wait would notice tells so."""
    held_back = processes.add_task(Task(len, "abc", can_run=lambda: False))
    after = processes.add_task(Task(len, "ab"))
    processes.tick()
    waits: list[float] = []
    monkeypatch.setattr(processes.manager, "wait", waits.append)
    processes.wait(DEADLINE)
    held_back.cancel()
    processes.wait(DEADLINE)
    assert waits == [DEADLINE, 0.0]
    monkeypatch.undo()
    assert after.result(DEADLINE) == 2


def test_leaving_cancels_what_has_not_begun_and_stops_what_runs(short_path):
    with GroupManager(ProcessManager(f"unix://{short_path}/m")) as groups:
        running = groups.add_task(Task(signal.pause))
        later = groups.add_task(Task(len, "abc"))
        begin(groups, running)
    assert running.state is State.CANCELLED
    assert later.state is State.CANCELLED
    with pytest.raises(TaskCancelled):
        later.result()


# -- rules -----------------------------------------------------------------------------------------------------


def test_rules_hold_within_a_group(processes):
    rule = Rule(processes=1)
    processes.add_rule(rule)
    heard: list[str] = []
    processes.add_group([Watched(heard, name) for name in ("a1", "a2", "a3")])
    processes.add_group([Watched(heard, "b1")])
    run(processes)
    assert heard == [f"{name} {state}" for name in ("a1", "a2", "a3", "b1") for state in ("running", "done")]
    assert processes.remove_rule(rule)
    assert not processes.remove_rule(rule)


def test_the_members_of_a_group_run_together(processes, short_path):
    """Each waits for the other's word."""
    fifo = short_path / "fifo"
    os.mkfifo(fifo)
    reader = Task(lambda: fifo.read_text())
    writer = Task(lambda: fifo.write_text("together"))
    processes.add_group([reader, writer])
    run(processes)
    assert reader.result() == "together"


# -- managers of managers --------------------------------------------------------------------------------------


def test_a_group_manager_may_lead_another(short_path):
    heard: list[str] = []
    with GroupManager(GroupManager(ProcessManager(f"unix://{short_path}/m"))) as outer:
        fifo = short_path / "fifo"
        os.mkfifo(fifo)
        reader = Task(lambda: fifo.read_text())
        outer.add_group([reader, Task(lambda: fifo.write_text("together"))])
        outer.add_task(Watched(heard, "b"))
        last = outer.add_task(Task(len, "abc"))
        assert last.result(DEADLINE) == 3
        assert reader.result() == "together"
        run(outer)
    assert heard == ["b running", "b done"]


def test_two_group_managers_may_share_a_manager_and_do_not_wait_for_each_other(short_path):
    with ProcessManager(f"unix://{short_path}/m") as inner:
        slow, quick = GroupManager(inner), GroupManager(inner)
        running = slow.add_task(Task(signal.pause))
        never = slow.add_task(Task(len, "abc"))
        quick.add_task(Task(len, "abc"))
        last = quick.add_task(Task(len, "ab"))
        begin(slow, running)
        assert last.result(DEADLINE) == 2
        assert never.state is State.WAITING


def test_listeners_of_the_inner_manager_hear_the_members(groups):
    heard: list[int] = []
    groups.server.add_listener("progress", heard.append)

    def speak(number: int) -> None:
        current_task().emit("progress", number)

    for number in range(3):
        groups.add_task(Task(speak, number))
    run(groups)
    assert heard == [0, 1, 2]


def test_run_ends_when_its_time_is_over(processes):
    task = processes.add_task(Task(signal.pause))
    later = processes.add_task(Task(len, "abc"))
    processes.run(0.05)
    assert not task.done()
    assert not later.done()


def test_run_sleeps_while_nothing_happens(processes, monkeypatch):
    task = processes.add_task(Task(signal.pause))
    processes.add_task(Task(len, "abc"))
    begin(processes, task)
    ticks: list[bool] = []
    tick = processes.tick
    monkeypatch.setattr(processes, "tick", lambda: ticks.append(tick()) or ticks[-1])
    processes.run(0.2)
    assert len(ticks) < 20
