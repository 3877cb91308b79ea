"""The ancestor's bugs and quirks, B11 to B20: what was wrong there, and that it is not so here, or is so on purpose.

Chosen by number: ``pytest -k B17``. B1 to B10 are in test_ancestor.py; docs/coming-from-php.md tells them all.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import reuse
from chores import die, sign_in, stay, stay_stubbornly
from launching import exit_of
from managing import run, tick_until
from namespaces import inside
from waiting import DEADLINE

from doorman import ProcessManager, Rule, State, SynchronousManager, Task, load
from doorman.errors import PidfdUnavailable, TaskAlreadyAdded, TaskNotPicklable, WorkerDied
from doorman.launcher import Order
from doorman.launcher.zygote import ZygoteLauncher
from doorman.process import Process

SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/manager", grace=0.3) as manager:
        yield manager


def test_B11_a_tick_reads_each_process_once_however_many_tasks_wait(manager, monkeypatch):
    """Fix: each waiting task had every running process read by a ``ps`` of its own, twice."""
    manager.add_rule(Rule(processes=5, minimum_processor_load=0))
    tasks = [manager.add_task(Task(stay)) for _ in range(1000)]
    tick_until(manager, lambda: sum(task.state is State.RUNNING for task in tasks) == 5)
    reads: list[int] = []
    read, started = load.stat_fields, []
    monkeypatch.setattr(load, "stat_fields", lambda pid: reads.append(pid) or read(pid))
    monkeypatch.setattr(subprocess, "Popen", started.append)
    most = 0
    for _ in range(20):
        reads.clear()
        manager.wait(load.SAMPLE_INTERVAL_S)
        manager.tick()
        most = max(most, len(reads))
    assert len(manager.waiting) == 995
    assert 0 < most <= 5
    assert started == []


def test_B12_who_has_an_ended_tasks_number_is_neither_counted_nor_killed():
    """Fix: zombies and strangers under a task's old number counted as running for ever, and were sent SIGKILL."""
    told = inside(reuse.of_tasks, 5)
    assert {name: told[name] for name in ("reused", "hit", "opened", "state")} == {
        "reused": 5,
        "hit": 0,
        "opened": 0,
        "state": 5,
    }


def leave_politely(folder: Path) -> None:
    """Put things in order when asked to end."""

    def leave(*_: object) -> None:
        (folder / "left").touch()
        raise SystemExit(3)

    signal.signal(signal.SIGTERM, leave)
    (folder / "up").touch()
    stay()


def test_B13_a_task_is_asked_first_and_is_running_until_it_has_surely_ended(manager, short_path, tmp_path):
    """Fix: SIGKILL at once to one number, no word of its effect, no exit code; garbage in a worker ended as success."""
    with ProcessManager(f"unix://{short_path}/patient", grace=DEADLINE) as patient:
        polite = patient.add_task(Task(leave_politely, tmp_path))
        deaf = manager.add_task(Task(stay_stubbornly, tmp_path / "deaf"))
        for owner, task, up in ((patient, polite, tmp_path / "up"), (manager, deaf, tmp_path / "deaf")):
            tick_until(owner, up.exists)
            with task.identity.open() as process:
                owner.stop()
                assert owner.running == (task,), "told to end is not ended"
                tick_until(owner, task.done)
                assert not process.alive()
    assert (tmp_path / "left").exists()
    assert (polite.exit_code, deaf.signal) == (3, signal.SIGKILL)
    killed, failed = Task(die, int(signal.SIGSEGV)), Task(divmod, 1, 0)
    run(manager, killed, failed)
    assert killed.exception().signal == signal.SIGSEGV
    assert isinstance(failed.exception(), ZeroDivisionError)
    with ZygoteLauncher() as launcher, (tmp_path / "err").open("wb") as file:
        assert exit_of(launcher, Order("a", b"s" * 32, b"garbage", stderr=file.fileno())).exit_code != 0
    assert (tmp_path / "err").read_text()


def test_B14_siblings_have_the_same_callable_and_only_those_that_run_are_stopped(manager, tmp_path):
    """Keep: those that wait stay, and one that starts later in the same tick wins. Fix: not every callable is one."""
    old = manager.add_task(Task(stay, tmp_path / "old"))
    other = manager.add_task(Task(stay_stubbornly, tmp_path / "other"))
    waits = manager.add_task(Task(stay, can_run=lambda: False))
    tick_until(manager, lambda: (tmp_path / "old").exists() and (tmp_path / "other").exists())
    first, last = (manager.add_task(Task(stay, stops_siblings=True)) for _ in range(2))
    tick_until(manager, lambda: old.done() and first.done() and last.state is State.RUNNING)
    assert (old.state, first.state) == (State.CANCELLED, State.CANCELLED)
    assert (other.state, waits.state) == (State.RUNNING, State.WAITING)


def test_B15_what_cannot_travel_is_told_when_it_is_added_and_holds_nobody_up(manager, tmp_path):
    """Fix: it failed within a tick; what had started in that tick was started again, and it was tried for ever."""
    first = manager.add_task(Task(sign_in, tmp_path / "first"))
    with pytest.raises(TaskNotPicklable, match="argument 1 <unlocked"):
        manager.add_task(Task(print, threading.Lock()))
    last = run(manager, Task(sign_in, tmp_path / "last"))
    assert [(task.state, task.attempt) for task in (first, last)] == [(State.DONE, 1)] * 2
    for task, name in ((first, "first"), (last, "last")):
        assert int((tmp_path / name).read_text().split()[0]) == task.identity.pid


def test_B16_arguments_may_be_large_and_are_hidden_and_paths_may_have_any_name(short_path):
    """Fix: a task travelled in an argument: 128 KiB, for everybody to see; the path of the logs was not quoted."""

    def seen(text: str) -> tuple[int, bool]:
        found = Path("/proc/self/cmdline").read_bytes() + Path("/proc/self/environ").read_bytes()
        print("written")
        return len(text), b"confidential" in found

    logs = short_path / "it's a \"log\"; touch 'x' $(touch y)"
    with ProcessManager(f"unix://{short_path}/m", log_path=logs) as manager:
        task = run(manager, Task(seen, "confidential" * 500_000))
    assert task.result() == (6_000_000, False)
    assert task.output[0].read_text() == "written\n"
    assert sorted(path.name for path in short_path.iterdir() if path.is_dir()) == [logs.name]


def test_B17_without_processes_each_task_runs_once_and_is_asked_and_one_that_raises_stops_no_other():
    """Fix: a second tick ran all again, nobody was asked, the first exception ended everything, it never was busy."""
    calls: list[str] = []
    answers = [False, True]
    with SynchronousManager(rules=[Rule(processes=0, handler="barred")]) as manager:
        bad = manager.add_task(Task(divmod, 1, 0))
        later = manager.add_task(Task(calls.append, "later", can_run=lambda: answers.pop(0)))
        barred = manager.add_task(Task(calls.append, "barred", handler="barred"))
        dropped = manager.add_task(Task(calls.append, "dropped", cancel_when=lambda: True))
        good = manager.add_task(Task(calls.append, "good"))
        assert manager.tick()
        assert calls == ["good"]
        assert manager.tick()
        assert calls == ["good", "later"]
        assert manager.why(barred) == "0 of 0 processes of handler 'barred' run"
        assert isinstance(bad.exception(), ZeroDivisionError)
    assert [task.state for task in (later, good, barred, dropped)] == ["done", "done", "cancelled", "cancelled"]


def test_B18_a_task_object_is_one_run(manager):
    """Fix: an object added twice had one start time, one number and one end for two processes."""
    task = manager.add_task(Task(len, "abc"))
    with pytest.raises(TaskAlreadyAdded, match="make a new task"):
        manager.add_task(task)
    manager.run(DEADLINE)
    assert (task.result(0), task.attempt) == (3, 1)
    with pytest.raises(TaskAlreadyAdded, match="make a new task"):
        manager.add_task(task)


def test_B19_a_manager_that_is_killed_leaves_no_process_behind(short_path, tmp_path):
    """Fix: only a clean end of the manager ended its children. Who wants them to stay has to say so."""
    script = f"""
from pathlib import Path
from chores import stay
from doorman import ProcessManager, Task
with ProcessManager("unix://{short_path}/m") as manager:
    for number in range(2):
        manager.add_task(Task(stay, Path({str(tmp_path)!r}) / str(number)))
    while manager.tick():
        if all(task.identity for task in manager.running):
            print(*[task.identity.pid for task in manager.running], flush=True)
        manager.wait(60)
"""
    environment = {**os.environ, "PYTHONPATH": SUPPORT}
    with subprocess.Popen([sys.executable, "-c", script], env=environment, stdout=subprocess.PIPE, text=True) as owner:
        processes = [Process.open(int(pid)) for pid in owner.stdout.readline().split()]
        owner.kill()
    assert len(processes) == 2
    for process in processes:
        assert process.wait(DEADLINE)
        process.close()


def test_B20_no_program_of_the_system_is_needed_and_a_start_that_fails_is_told(short_path):
    """Fix: it needed a shell and a ``ps`` that knows its options. Keep: no Windows; there it says so at once."""
    script = f"""
from doorman import ProcessManager, Rule, Task
with ProcessManager("unix://{short_path}/m", rules=[Rule(processes=1, minimum_processor_load=0)]) as manager:
    tasks = [manager.add_task(Task(divmod, number, 3)) for number in range(3)]
    manager.run()
    print([task.result() for task in tasks])
"""
    bare = subprocess.run(
        [sys.executable, "-c", script],
        env={"PATH": "/nowhere"},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert bare.stdout == "[(0, 0), (0, 1), (0, 2)]\n", bare.stderr
    with ProcessManager(f"unix://{short_path}/m", preload=["no_such_module"]) as manager:
        task = run(manager, Task(len, "abc"))
        with pytest.raises(WorkerDied, match=r"(?s)no process was started.*no_such_module"):
            task.result()
        assert (task.state, task.identity) == (State.FAILED, None)


def test_B20_a_system_without_what_identity_rests_on_is_told_at_once(short_path, monkeypatch):
    for name in ("pidfd_open", "eventfd", "sched_getaffinity"):
        monkeypatch.delattr(os, name)
    with pytest.raises(PidfdUnavailable, match="use Linux"):
        ProcessManager(f"unix://{short_path}/m")
    assert list(short_path.iterdir()) == []
