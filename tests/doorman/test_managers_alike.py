"""Managers: the same surface, with processes and without."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Iterator

import pytest
from waiting import DEADLINE

from doorman import ProcessManager, Rule, State, SynchronousManager, Task, current_task
from doorman.errors import (
    NotInTask,
    ResultTimeout,
    TaskAlreadyAdded,
    TaskCancelled,
    TaskExpired,
    TaskFailed,
    TaskNotPicklable,
    WorkerDied,
)


@pytest.fixture(params=[SynchronousManager, ProcessManager])
def either(request: pytest.FixtureRequest) -> Iterator[SynchronousManager | ProcessManager]:
    """A manager of each kind, for what is the same of both."""
    places = [] if request.param is SynchronousManager else [f"unix://{request.getfixturevalue('short_path')}/m"]
    with request.param(*places) as manager:
        yield manager


def ended(manager: SynchronousManager | ProcessManager, task: Task) -> Task:
    manager.add_task(task)
    manager.run(DEADLINE)
    assert not manager.busy
    return task


def test_results_and_keyword_arguments(either):
    task = ended(either, Task(sorted, [1, 3, 2], kwargs={"reverse": True}))
    assert task.result() == [3, 2, 1]
    assert (task.state, task.attempt) == (State.DONE, 1)
    assert task.identity.strength == "pidfd-inode"
    assert task.duration >= 0


def test_result_before_the_end_drives_the_manager(either):
    assert either.add_task(Task(len, "abc")).result(DEADLINE) == 3


def test_an_exception_is_raised_with_its_traceback_as_cause(either):
    def broken() -> None:
        try:
            raise KeyError("first")
        except KeyError as first:
            raise ValueError("second") from first

    task = ended(either, Task(broken))
    with pytest.raises(ValueError, match="second") as raised:
        task.result()
    assert isinstance(raised.value.__cause__, TaskFailed)
    assert "in broken" in str(raised.value.__cause__)
    assert "KeyError: 'first'" in str(raised.value.__cause__)
    assert task.state is State.FAILED


@pytest.mark.parametrize("code", [None, 0])
def test_leaving_without_an_error_is_returning_nothing(either, code):
    task = ended(either, Task(sys.exit, code))
    assert task.result() is None
    assert task.state is State.DONE


@pytest.mark.parametrize(("code", "exit_code"), [(3, 3), (True, 1), ("wrong", 1)])
def test_leaving_with_an_error_is_dying(either, code, exit_code):
    with pytest.raises(WorkerDied) as raised:
        ended(either, Task(sys.exit, code)).result()
    assert raised.value.exit_code == exit_code


def test_what_cannot_travel_is_told_by_both(either):
    with pytest.raises(TaskNotPicklable, match="argument 1"):
        either.add_task(Task(print, threading.Lock()))
    assert not either.busy


def test_a_task_can_be_added_only_once(either):
    task = either.add_task(Task(len, "abc"))
    with pytest.raises(TaskAlreadyAdded):
        either.add_task(task)


def test_retries_until_it_succeeds(either):
    def third_time_lucky() -> int:
        assert current_task().attempt == 3
        return current_task().attempt

    task = ended(either, Task(third_time_lucky, retries=5))
    assert task.result() == task.attempt == 3


def test_retries_come_to_an_end(either):
    task = ended(either, Task(divmod, 1, 0, retries=2))
    assert task.attempt == 3
    with pytest.raises(ZeroDivisionError):
        task.result()


def test_a_task_is_held_back_until_it_may_run(either):
    answers = [False, False, True]
    held_back = either.add_task(Task(len, "abc", can_run=lambda: answers.pop(0)))
    assert either.tick()
    assert held_back.state is State.WAITING
    assert held_back.result(DEADLINE) == 3
    assert answers == []


def test_a_task_that_may_never_run_times_out(either):
    task = either.add_task(Task(len, "abc", can_run=lambda: False))
    with pytest.raises(ResultTimeout):
        task.result(0.05)
    assert either.waiting == (task,)


def test_a_waiting_task_is_cancelled_when_it_says_so(either):
    answers = [False, False, True]
    task = ended(either, Task(len, "abc", can_run=lambda: False, cancel_when=lambda: answers.pop(0)))
    with pytest.raises(TaskCancelled):
        task.result()
    assert answers == []


@pytest.mark.parametrize("question", ["can_run", "cancel_when"])
def test_a_question_that_raises_fails_its_task_alone(either, question):
    bad = either.add_task(Task(len, "abc", **{question: lambda: 1 / 0}))
    good = ended(either, Task(len, "abc"))
    with pytest.raises(ZeroDivisionError):
        bad.result()
    assert bad.state is State.FAILED
    assert good.result() == 3


def test_a_waiting_task_can_be_cancelled_once(either):
    task = either.add_task(Task(len, "abc"))
    assert either.cancel(task)
    assert not either.cancel(task)
    with pytest.raises(TaskCancelled):
        task.result()
    assert not either.tick()


def test_events_of_a_task_reach_the_listeners(either):
    heard: list[tuple[int, str]] = []
    either.server.add_listener("progress", lambda number, *, unit: heard.append((number, unit)))

    def speak() -> None:
        for number in range(3):
            current_task().emit("progress", number, unit="%")

    ended(either, Task(speak)).result()
    assert heard == [(0, "%"), (1, "%"), (2, "%")]


def test_there_is_no_current_task_outside_one(either):
    assert ended(either, Task(lambda: current_task().name, name="me")).result() == "me"
    with pytest.raises(NotInTask):
        current_task()


def test_a_command(either, tmp_path):
    words = ["sh", "-c", "(pwd; echo $WORD $MORE) > file"]
    task = Task.command(words, cwd=tmp_path, env={"WORD": "said"}, wrapper=("env", "MORE=aloud"))
    assert ended(either, task).result() == task.exit_code == 0
    assert (tmp_path / "file").read_text() == f"{tmp_path}\nsaid aloud\n"


@pytest.mark.parametrize(
    ("text", "exit_code", "signal_number"), [("exit 3", 3, None), ("kill -9 $$", None, signal.SIGKILL)]
)
def test_a_command_that_fails(either, text, exit_code, signal_number):
    task = ended(either, Task.command(["sh", "-c", text]))
    with pytest.raises(WorkerDied) as raised:
        task.result()
    assert (task.exit_code, task.signal) == (exit_code, signal_number)
    assert (raised.value.exit_code, raised.value.signal) == (exit_code, signal_number)


def test_a_program_that_is_not_found(either):
    task = ended(either, Task.command(["no-such-program-anywhere"]))
    assert task.exception().exit_code == task.exit_code == 127


def test_a_command_that_expires(either):
    with pytest.raises(TaskExpired):
        ended(either, Task.command(["sleep", "1000"], expires_in=0.1, retries=3)).result()


def test_rules_are_kept(either):
    rule = Rule(processes=1)
    either.add_rule(rule)
    tasks = [either.add_task(Task(len, "abc")) for _ in range(3)]
    assert [task.result(DEADLINE) for task in tasks] == [3, 3, 3]
    assert either.remove_rule(rule)
    assert not either.remove_rule(rule)


def test_a_rule_holds_back_and_is_told_until_it_is_removed(either):
    rule = Rule(processes=0)
    either.add_rule(rule)
    task, other = either.add_task(Task(len, "abc")), either.add_task(Task(len, "ab", ignores_rules=True))
    assert other.result(DEADLINE) == 2
    assert either.why(task) == "0 of 0 processes run"
    assert either.remove_rule(rule)
    assert task.result(DEADLINE) == 3
    assert either.why(task) is None


def test_stopping_drops_what_waits(either):
    tasks = [either.add_task(Task(len, "abc", can_run=lambda: False)) for _ in range(3)]
    either.tick()
    assert [either.why(task) for task in tasks] == ["its can_run says no"] * 3
    either.stop()
    assert [task.state for task in tasks] == [State.CANCELLED] * 3
    assert not either.busy


def test_nothing_can_be_added_after_the_end(either):
    waiting = either.add_task(Task(len, "abc"))
    either.close()
    either.close()
    assert waiting.state is State.CANCELLED
    with pytest.raises(ValueError, match="closed"):
        either.add_task(Task(len, "abc"))
