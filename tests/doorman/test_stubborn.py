"""Stubborn: processes that do not end by themselves, nor alone, and systems that have no more of them to give."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import NoReturn

import pytest
from chores import hear_signals, stay, stay_stubbornly
from managing import tick_until
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.process import Process

DAEMON = """
import os, sys, time
if not os.fork():
    os.setsid()
    if not os.fork():
        with open(sys.argv[1] + ".part", "w") as file:
            file.write(str(os.getpid()))
        os.rename(sys.argv[1] + ".part", sys.argv[1])
        time.sleep(1000)
    os._exit(0)
os.wait()
time.sleep(1000)
"""


def daemonise(path: Path) -> NoReturn:
    """Start a process that has left this one's group, session and parent behind, then stay."""
    if not os.fork():
        os.setsid()
        if not os.fork():
            path.with_suffix(".part").write_text(f"{os.getpid()}")
            path.with_suffix(".part").rename(path)
            stay_stubbornly(path.with_suffix(".up"))
        os._exit(0)
    os.wait()
    stay()


def stay_beside_a_child(folder: Path) -> NoReturn:
    """Have a child in the same group, which tells when it is asked to end; be asked oneself, and wait for it."""

    def told(_number: int, _frame: object) -> NoReturn:
        (folder / "child-was-asked").touch()
        os._exit(0)

    signal.signal(signal.SIGTERM, lambda _number, _frame: None)
    child = os.fork()
    if not child:
        signal.signal(signal.SIGTERM, told)
        (folder / "up").touch()
        hear_signals()
    os.waitpid(child, 0)
    (folder / "child-has-ended").touch()
    os._exit(0)


def stopped(task: Task) -> None:
    """Stop a task's process, as Ctrl-Z does, and see that it is."""
    with task.identity.open() as process:
        process.signal(signal.SIGSTOP)
    deadline = time.monotonic() + DEADLINE
    stat = Path(f"/proc/{task.identity.pid}/stat")
    while stat.read_bytes().rpartition(b")")[2].split()[0] != b"T":
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("chore", [stay, stay_stubbornly])
def test_a_stopped_process_ends_when_it_is_cancelled(local, tmp_path, chore):
    """One that would end by SIGTERM is continued so that it can; one that would not is killed."""
    task = local.add_task(Task(chore, tmp_path / "up"))
    tick_until(local, (tmp_path / "up").exists)
    stopped(task)
    assert local.cancel(task)
    local.run(DEADLINE)
    assert task.state is State.CANCELLED
    assert task.signal == (signal.SIGTERM if chore is stay else signal.SIGKILL)


@pytest.mark.parametrize("chore", [stay, stay_stubbornly])
def test_a_stopped_process_expires(local, tmp_path, chore):
    def stop_oneself() -> None:
        if chore is stay_stubbornly:
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
        os.kill(os.getpid(), signal.SIGSTOP)
        stay()

    task = local.add_task(Task(stop_oneself, expires_in=1.5))
    local.run(DEADLINE)
    assert task.state is State.EXPIRED
    assert task.signal == (signal.SIGTERM if chore is stay else signal.SIGKILL)


def test_sigterm_reaches_a_process_of_the_tasks_group(local, tmp_path):
    task = local.add_task(Task(stay_beside_a_child, tmp_path))
    tick_until(local, (tmp_path / "up").exists)
    local.cancel(task)
    local.run(DEADLINE)
    assert (tmp_path / "child-was-asked").exists()
    assert (tmp_path / "child-has-ended").exists()
    assert task.exit_code == 0


@pytest.mark.parametrize("ends", ["cancelled", "killed"])
@pytest.mark.parametrize("kind", ["callable", "command", "wrapped"])
def test_a_daemonised_grandchild_does_not_outlive_the_task(local, tmp_path, kind, ends):
    """It has left group, session and parent behind."""
    path = tmp_path / "daemon"
    if kind == "command":
        task = Task.command([sys.executable, "-c", DAEMON, str(path)])
    else:
        task = Task(daemonise, path, wrapper=("env",) if kind == "wrapped" else ())
    local.add_task(task)
    tick_until(local, path.exists)
    with Process.open(int(path.read_text())) as daemon:
        assert os.getpgid(daemon.pid) != os.getpgid(task.identity.pid)
        if ends == "cancelled":
            local.cancel(task)
        else:
            with task.identity.open() as process:
                process.signal(signal.SIGKILL)
        local.run(DEADLINE)
        assert task.done()
        assert daemon.wait(DEADLINE), f"process {daemon.pid} outlives its task"


def test_a_system_without_processes_is_waited_for(short_path, tmp_path, monkeypatch):
    """The task waits, says why, and starts once there are processes again; its attempt is still its first."""
    monkeypatch.setenv("SCARCE", str(tmp_path))
    (tmp_path / "scarce").touch()
    with ProcessManager(f"unix://{short_path}/m", preload=["scarce"]) as manager:
        tasks = [manager.add_task(Task(divmod, number, 3)) for number in range(3)]
        log = tmp_path / "log"
        tick_until(manager, lambda: log.exists() and len(log.read_text().splitlines()) >= 4)
        tick_until(manager, lambda: "no process can be started now: fork" in (manager.why(tasks[0]) or ""))
        assert {task.state for task in tasks} <= {State.WAITING, State.LAUNCHING}
        (tmp_path / "scarce").unlink()
        manager.run(DEADLINE)
        assert [task.result(0) for task in tasks] == [divmod(number, 3) for number in range(3)]
        assert {task.attempt for task in tasks} == {1}


def test_a_manager_does_not_ask_without_end_where_there_are_no_processes(short_path, tmp_path, monkeypatch):
    monkeypatch.setenv("SCARCE", str(tmp_path))
    (tmp_path / "scarce").touch()
    with ProcessManager(f"unix://{short_path}/m", preload=["scarce"]) as manager:
        task = manager.add_task(Task(divmod, 7, 3))
        tick_until(manager, lambda: manager.why(task) is not None)
        asked = len((tmp_path / "log").read_text().splitlines())
        for _ in range(1000):
            manager.tick()
            if task.state is not State.WAITING:
                break
        assert len((tmp_path / "log").read_text().splitlines()) <= asked + 1
        assert task.cancel()
        assert not manager.busy or manager.running == (task,)
