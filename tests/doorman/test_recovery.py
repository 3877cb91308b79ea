"""Recovery: the tasks of a manager that died are had again by the next, as they were and under the same policy."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from chores import die, fail_until, stay
from journals import added
from managing import tick_until
from mortals import slain
from waiting import DEADLINE

from doorman import Backoff, Intensity, Journal, Limits, ProcessManager, Rule, State, Task
from doorman.errors import (
    DependencyFailed,
    JournalError,
    RestartedTooOften,
    TaskCancelled,
    TaskExpired,
    WorkerDied,
)
from remit import Location


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


# -- what a manager writes -----------------------------------------------------------------------------------------


def test_a_task_is_in_it_before_add_task_returns(path):
    with ProcessManager(journal=path) as manager:
        manager.add_task(Task(pow, 2, 3, name="eight"))
        assert b'"name":"eight"' in path.read_bytes()


def recovered(path: Path, place: Location) -> dict[str, Task]:
    with ProcessManager(place, journal=path) as manager:
        manager.run(DEADLINE)
        return {task.name: task for task in manager.recovered}


def test_what_has_ended_stays_as_it_ended(path, short_path):
    place = Location(f"unix://{short_path}/m")
    with ProcessManager(place, journal=path) as manager:
        for name, task in {
            "raised": Task(int, "x", name="raised"),
            "cancelled": Task(stay, name="cancelled"),
            "expired": Task(stay, name="expired", expires_in=0.1),
            "died": Task(die, 9, name="died"),
            "tried": Task(fail_until, path.with_name("tries"), 3, name="tried", retries=5),
            "command": Task.command(["true"], name="command"),
            "waiting": Task(pow, 2, 3, name="waiting", can_run=lambda: False),
        }.items():
            manager.add_task(task)
            assert task.name == name
        tick_until(manager, lambda: task_of(manager, "cancelled").state is State.RUNNING)
        manager.cancel(task_of(manager, "cancelled"))
        manager.cancel(task_of(manager, "waiting"))
        manager.run(DEADLINE)
    for _ in range(2):
        tasks = recovered(path, place)
        states = {name: str(task.state) for name, task in tasks.items()}
        assert states == {
            "raised": "failed",
            "cancelled": "cancelled",
            "expired": "expired",
            "died": "failed",
            "tried": "done",
            "command": "done",
            "waiting": "cancelled",
        }
        assert (tasks["tried"].result(), tasks["tried"].attempt) == (3, 3)
        assert (tasks["command"].result(), tasks["command"].exit_code) == (0, 0)
        for name, error in {"raised": ValueError, "cancelled": TaskCancelled, "expired": TaskExpired}.items():
            assert isinstance(tasks[name].exception(), error)
        assert isinstance(tasks["waiting"].exception(), TaskCancelled)
        assert (tasks["died"].exception().signal, tasks["died"].signal) == (9, 9)
        assert tasks["died"].identity.pid == tasks["died"].exception().pid


def test_the_future_of_what_has_ended_tells_how(path, short_path):
    place = Location(f"unix://{short_path}/m")
    with ProcessManager(place, journal=path) as manager:
        manager.add_task(Task(pow, 2, 3, name="returned"))
        manager.add_task(Task(int, "x", name="raised"))
        manager.run(DEADLINE)
    tasks = recovered(path, place)
    assert tasks["returned"].future.result(0) == 8
    assert isinstance(tasks["raised"].future.exception(0), ValueError)


def task_of(manager: ProcessManager, name: str) -> Task:
    return next(task for task in (*manager.running, *manager.waiting) if task.name == name)


def test_what_had_told_its_result_ends_with_it(path, short_path, tmp_path):
    """The manager dies after it has confirmed a result, and before it has ended the task."""
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman.journal.recorder import Recorder
Recorder.ended = lambda self, task, *_: (say("now"), os.kill(os.getpid(), 9))
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(impostors.marked, folder / "ran", name="task", retries=3))
forever()
"""
    slain(code, place, tmp_path)
    task = recovered(path, place)["task"]
    assert (task.result(), task.attempt, task.state) == ("ran", 1, "done")
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


def test_what_was_running_is_tried_again_if_it_may_be(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
manager = ProcessManager(location, journal=folder / "journal")
for retries in (0, 1):
    name = f"{retries} retries"
    manager.add_task(Task(chores.wait_for_go, folder / name, name=name, retries=retries))
until(lambda: all((folder / f"{retries} retries").exists() for retries in (0, 1)))
say("up")
"""
    slain(code, place, tmp_path)
    before = (tmp_path / "1 retries").read_text()
    (tmp_path / "go").touch()
    lost, again = recovered(path, place).values()
    assert (lost.state, again.state, again.attempt) == (State.LOST, State.DONE, 2)
    assert isinstance(lost.exception(), WorkerDied)
    assert f"{again.result()}" != before


def test_a_task_that_is_recovered_has_the_policy_that_it_was_added_with(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman import Backoff, Intensity, Limits
manager = ProcessManager(location, journal=folder / "journal")
first = manager.add_task(Task(chores.stay, name="first", priority=7, limits=Limits(nice=3, umask=0o27), expires_in=9.0))
manager.add_task(Task(chores.stay, name="second", after=[first], retries=2, backoff=Backoff(first=0.25, jitter=0.0)))
often = Intensity(restarts=2, seconds=3600.0)
manager.add_task(
    Task(chores.die, 9, name="third", restart="permanent", intensity=often, backoff=Backoff(first=0), wrapper=["nice"])
)
say("up")
"""
    slain(code, place, tmp_path)
    with ProcessManager(place, journal=path) as manager:
        first, second, third = manager.recovered
        assert (first.priority, first.expires_in, first.limits) == (7, 9.0, Limits(nice=3, umask=0o27))
        assert (second.after, second.retries, second.backoff) == ((first,), 2, Backoff(first=0.25, jitter=0.0))
        assert (third.restart, third.wrapper) == ("permanent", ("nice",))
        assert third.intensity == Intensity(restarts=2, seconds=3600.0)
        assert isinstance(third.exception(DEADLINE), RestartedTooOften)
        assert third.attempt == 3
        assert second.state is State.WAITING
        first.cancel()
        assert isinstance(second.exception(DEADLINE), DependencyFailed)


def test_what_a_process_may_use_is_what_it_might_under_the_manager_before(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman import Limits
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(os.umask, 0, name="limited", limits=Limits(umask=0o27)))
for priority in range(3):
    manager.add_task(Task.command(["sh", "-c", f"echo {priority} >> {folder}/order"], priority=priority))
say("up")
"""
    slain(code, place, tmp_path)
    with ProcessManager(place, journal=path, rules=[Rule(processes=1)]) as manager:
        manager.run(DEADLINE)
        assert manager.recovered[0].result() == 0o27
        assert (tmp_path / "order").read_text().split() == ["2", "1", "0"]


def test_tasks_of_two_managers_have_ids_of_their_own(path, short_path):
    place = Location(f"unix://{short_path}/m")
    for _ in range(3):
        with ProcessManager(place, journal=path) as manager:
            task = Task(pow, 2, 3)
            task.id = "1"  # as in a process that has just begun
            assert manager.add_task(task).result(DEADLINE) == 8
    assert [finished.id for finished in Journal.read(path)] == ["1", "2", "3"]


def test_what_a_task_comes_after_is_not_forgotten_before_it_has_ended(path, short_path):
    place = Location(f"unix://{short_path}/m")
    with Journal(path, keep=0) as journal, ProcessManager(place, journal=journal) as manager:
        first = manager.add_task(Task(pow, 2, 1, name="first"))
        held = manager.add_task(Task(pow, 2, 2, name="held", can_run=lambda: False))
        manager.add_task(Task(pow, 2, 3, name="last", after=[first, held]))
        first.result(DEADLINE)
    with Journal(path, keep=0) as journal, ProcessManager(place, journal=journal) as manager:
        tasks = {task.name: task for task in manager.recovered}
        assert tasks["last"].after == (tasks["first"], tasks["held"])
        assert "it comes after 'held'" in manager.why(tasks["last"])
        manager.run(DEADLINE)
    with Journal(path, keep=0) as journal:
        assert journal.entries() == ()


def test_a_task_in_the_policy_of_another_is_the_recovered_one(path, monkeypatch):
    from doorman.journal import recorder

    monkeypatch.setitem(recorder.POLICY_DEFAULTS, "partner", None)
    first, second = Task(pow, 1, 1), Task(pow, 1, 1)
    second.partner = [first]  # as a policy may say after which task this one begins
    parts = added("x")
    parts.policy = recorder.pickled_policy(second)
    assert recorder.policy_of(parts, {first.id: first})["partner"][0] is first
    assert "partner" not in recorder.policy_of(parts, {}), "a task that is forgotten"


def test_what_cannot_be_pickled_does_not_keep_the_rest_of_a_policy(caplog):
    from doorman.journal import recorder

    task = Task(pow, 1, 1, retries=3, can_run=lambda: True)
    task.cwd = (line for line in ())
    parts = added("x")
    parts.policy = recorder.pickled_policy(task)
    policy = recorder.policy_of(parts, {})
    assert policy == {"name": "pow", "handler": "builtins.pow", "retries": 3}
    assert "its cwd cannot be journalled" in caplog.text


def test_a_journal_of_ones_own_stays_open(path):
    with Journal(path) as journal:
        with ProcessManager(journal=journal) as manager:
            assert manager.add_task(Task(pow, 2, 3)).result(30) == 8
        journal.check()
    [finished] = Journal.read(path)
    assert finished.result() == 8


def test_a_manager_does_not_go_on_without_its_journal(path, monkeypatch):
    with ProcessManager(journal=path) as manager:
        manager.add_task(Task(pow, 2, 3))
        with monkeypatch.context() as patch:
            patch.setattr("doorman.journal.journal.encoded", lambda record: b"")
            patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(JournalError, match="No space left"):
                manager.add_task(Task(pow, 2, 4))
        with pytest.raises(JournalError, match="No space left"):
            manager.tick()
