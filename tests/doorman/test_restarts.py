"""Restarts: tasks that are tried again: how often, how soon, and until when."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest
from chores import fail_until, stay
from managing import tick_until
from waiting import DEADLINE

from doorman import Backoff, Intensity, ProcessManager, State, SynchronousManager, Task, current_task
from doorman.errors import RestartedTooOften, TaskCancelled, WorkerDied

LONG = Backoff(first=3600.0, most=3600.0)


def sign(path: Path) -> int:
    """Add a line that names this process."""
    with path.open("a") as file:
        file.write(f"{os.getpid()} {current_task().attempt}\n")
    return current_task().attempt


def sign_and_raise(path: Path) -> None:
    sign(path)
    raise OSError("broken")


def sign_and_stay(path: Path) -> None:
    sign(path)
    stay()


def lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


@pytest.fixture(params=["processes", "none"])
def any_manager(request, short_path):
    processes = request.param == "processes"
    with ProcessManager(f"unix://{short_path}/m", grace=1.0) if processes else SynchronousManager() as manager:
        yield manager


def test_a_task_that_backs_off_holds_up_nobody_and_says_when_it_is_due(any_manager, tmp_path):
    task = any_manager.add_task(Task(fail_until, tmp_path / "log", 2, retries=1, backoff=LONG))
    tick_until(any_manager, lambda: task.attempt == 1 and task in any_manager.waiting)
    assert "attempt 1 has ended; it is tried again in 3" in any_manager.why(task)
    assert any_manager.add_task(Task(divmod, 7, 2)).result(DEADLINE) == (3, 1)
    assert any_manager.busy
    assert task.cancel()
    assert (task.state, any_manager.busy, lines(tmp_path / "log")) == (State.CANCELLED, False, ["tried"])


def test_a_task_that_backed_off_is_tried_again(any_manager, tmp_path):
    task = any_manager.add_task(Task(fail_until, tmp_path / "log", 3, retries=2, backoff=Backoff(first=0.02)))
    assert task.result(DEADLINE) == task.attempt == 3


def test_a_manager_with_nothing_but_a_task_that_backs_off_sleeps(local, tmp_path):
    """It is woken by the moment, not by looking."""
    task = local.add_task(Task(fail_until, tmp_path / "log", 2, retries=1, backoff=LONG))
    tick_until(local, lambda: task.attempt == 1 and task in local.waiting)
    local.tick()
    waited: list[float] = []
    wait, local.server.wait = local.server.wait, lambda timeout, waker=None: waited.append(timeout)
    local.wait(60.0)
    local.server.wait = wait
    assert waited[0] > 5.0


def test_a_permanent_task_runs_until_it_is_cancelled(any_manager, tmp_path):
    task = any_manager.add_task(Task(sign, tmp_path / "log", restart="permanent", intensity=Intensity(restarts=1000)))
    tick_until(any_manager, lambda: len(lines(tmp_path / "log")) >= 4)
    assert not task.done()
    task.cancel()
    any_manager.run(DEADLINE)
    assert not any_manager.busy
    assert task.state in (State.CANCELLED, State.DONE)  # the latter if it was just about to tell its result
    assert [line.split()[1] for line in lines(tmp_path / "log")][:4] == ["1", "2", "3", "4"]


def test_a_restarted_task_is_the_same_with_a_new_identity(local, tmp_path):
    task = local.add_task(Task(sign_and_stay, tmp_path / "log", restart="transient"))
    tick_until(local, lambda: lines(tmp_path / "log"))
    before = task.identity
    with before.open() as process:
        process.signal(signal.SIGKILL)
    tick_until(local, lambda: len(lines(tmp_path / "log")) == 2)
    assert (task.attempt, task.state) == (2, State.RUNNING)
    assert task.identity.attempt != before.attempt
    assert task.identity.inode != before.inode
    assert lines(tmp_path / "log") == [f"{before.pid} 1", f"{task.identity.pid} 2"]
    task.cancel()
    local.run(DEADLINE)
    with pytest.raises(TaskCancelled):
        task.result(0)


def test_a_transient_task_that_returns_is_done(any_manager, tmp_path):
    task = any_manager.add_task(Task(fail_until, tmp_path / "log", 2, restart="transient"))
    assert task.result(DEADLINE) == 2


def test_a_transient_task_that_hangs_is_restarted_when_it_expires(local, tmp_path):
    task = local.add_task(Task(sign_and_stay, tmp_path / "log", restart="transient", expires_in=0.2))
    tick_until(local, lambda: len(lines(tmp_path / "log")) == 2)
    task.cancel()
    local.run(DEADLINE)
    assert not local.busy
    assert task.attempt >= 2  # More, if one expired before it had signed.


def test_a_cancelled_task_is_not_restarted_though_it_was_expiring(local, tmp_path):
    task = local.add_task(Task(stay, tmp_path / "up", restart="permanent", expires_in=0.05))
    tick_until(local, lambda: task.state is State.STOPPING)
    assert task.cancel()
    local.run(DEADLINE)
    assert (task.state, task.attempt) == (State.EXPIRED, 1)


@pytest.mark.parametrize("policy", [{"restart": "permanent"}, {"retries": 3}])
def test_a_task_that_is_killed_is_not_tried_again(local, tmp_path, policy):
    task = local.add_task(Task(stay, tmp_path / "up", **policy))
    tick_until(local, (tmp_path / "up").exists)
    assert task.stop(kill=True)
    tick_until(local, lambda: task.done() or task.attempt > 1)
    assert (task.state, task.signal, task.attempt) == (State.FAILED, signal.SIGKILL, 1)


def test_a_task_that_is_restarted_too_often_fails_with_its_last_error(any_manager, tmp_path):
    often = Intensity(restarts=2, seconds=3600.0)
    task = any_manager.add_task(Task(sign_and_raise, tmp_path / "log", restart="permanent", intensity=often))
    any_manager.run(DEADLINE)
    with pytest.raises(RestartedTooOften, match="OSError: broken") as raised:
        task.result(0)
    assert isinstance(raised.value.__cause__, OSError)
    assert (task.state, len(lines(tmp_path / "log"))) == (State.FAILED, 3)


def test_a_command_is_restarted_too(local, tmp_path):
    script = f"open({str(tmp_path / 'log')!r}, 'a').write('run\\n'); raise SystemExit(3)"
    task = local.add_task(
        Task.command(
            [sys.executable, "-c", script], restart="transient", intensity=Intensity(restarts=1, seconds=3600.0)
        )
    )
    local.run(DEADLINE)
    with pytest.raises(RestartedTooOften) as raised:
        task.result(0)
    assert isinstance(raised.value.__cause__, WorkerDied)
    assert raised.value.__cause__.exit_code == 3
    assert lines(tmp_path / "log") == ["run", "run"]
