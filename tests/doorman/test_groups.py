"""Groups: group after group, whatever becomes of the members."""

from __future__ import annotations

import signal
import threading

import pytest
from grouping import Watched, begin, fail, run
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, State, Task, current_task
from doorman.errors import ResultTimeout, TaskAlreadyAdded, TaskCancelled, TaskNotPicklable


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
