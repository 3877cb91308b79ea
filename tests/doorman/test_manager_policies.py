"""Manager: what a task's policy and the rules make of it."""

from __future__ import annotations

import os
import resource
import signal
import threading

import pytest
from chores import fail_until, stay
from managing import run, tick_until
from waiting import DEADLINE

from doorman import Rule, State, Task


def test_a_task_that_fails_is_tried_again(local, tmp_path):
    task = run(local, Task(fail_until, tmp_path / "log", 3, retries=2))
    assert task.result() == task.attempt == 3
    assert (tmp_path / "log").read_text() == "tried\n" * 3


def test_retries_end(local, tmp_path):
    task = run(local, Task(fail_until, tmp_path / "log", 9, retries=1))
    with pytest.raises(OSError, match="not yet"):
        task.result()
    assert (tmp_path / "log").read_text() == "tried\n" * 2


def test_rules_hold_back_and_tell_why(local, tmp_path):
    local.add_rule(Rule(processes=1))
    first, second = local.add_task(Task(stay, tmp_path / "1")), local.add_task(Task(stay, tmp_path / "2"))
    tick_until(local, (tmp_path / "1").exists)
    local.tick()
    assert local.running == (first,)
    assert local.waiting == (second,)
    assert local.why(second) == "1 of 1 processes run"
    third = local.add_task(Task(divmod, 1, 1, ignores_rules=True))
    assert third.result(DEADLINE) == (1, 0)
    assert local.waiting == (second,)
    assert local.remove_rule(Rule(processes=1))
    tick_until(local, (tmp_path / "2").exists)
    assert local.why(second) is None


def test_no_more_processes_at_once_than_a_rule_says(local):
    local.add_rule(Rule(processes=3))
    tasks = [local.add_task(Task(divmod, number, 7)) for number in range(20)]
    most = 0
    while local.tick():
        most = max(most, len(local.running))
        local.wait(1.0)
    assert most == 3
    assert [task.result() for task in tasks] == [divmod(number, 7) for number in range(20)]


def test_a_task_stops_its_siblings(local, tmp_path):
    old = local.add_task(Task(stay, tmp_path / "old"))
    stranger = local.add_task(Task(stay, tmp_path / "stranger", handler="another"))
    tick_until(local, lambda: (tmp_path / "old").exists() and (tmp_path / "stranger").exists())
    new = local.add_task(Task(stay, tmp_path / "new", stops_siblings=True))
    tick_until(local, lambda: old.done() and (tmp_path / "new").exists())
    assert old.state is State.CANCELLED
    assert (new.state, stranger.state) == (State.RUNNING, State.RUNNING)


def test_can_run_and_cancel_when_are_asked(local, tmp_path):
    open_door, leave = threading.Event(), threading.Event()
    task = local.add_task(Task(stay, tmp_path / "up", can_run=open_door.is_set, cancel_when=leave.is_set))
    local.run(0.1)
    assert local.waiting == (task,)
    assert local.why(task) == "its can_run says no"
    threading.Timer(0.1, open_door.set).start()  # nobody tells the manager
    tick_until(local, (tmp_path / "up").exists)
    leave.set()
    local.run(DEADLINE)
    assert task.state is State.CANCELLED


@pytest.mark.parametrize("question", ["can_run", "cancel_when"])
def test_a_question_that_raises_fails_its_task_only(local, question):
    def broken() -> bool:
        raise LookupError("no answer")

    task, other = Task(stay, **{question: broken}), Task(divmod, 7, 2)
    run(local, task, other)
    with pytest.raises(LookupError, match="no answer"):
        task.result()
    assert other.result() == (3, 1)


def test_tasks_wait_while_few_descriptors_are_left(local):
    lowest = os.dup(0)
    os.close(lowest)
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    tasks = [local.add_task(Task(signal.pause)) for _ in range(30)]
    resource.setrlimit(resource.RLIMIT_NOFILE, (lowest + 40, before[1]))
    try:
        tick_until(local, lambda: tasks[3].state is State.RUNNING)
        assert "few descriptors are left" in local.why(tasks[-1])
        for task in tasks:
            tick_until(local, lambda task=task: task.state is State.RUNNING)
            task.cancel()
        local.run(DEADLINE)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)
    assert {task.state for task in tasks} == {State.CANCELLED}
    assert not local.refused
