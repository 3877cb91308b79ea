"""Limits: what a task's process may use: set before its code, whatever started it, or told."""

from __future__ import annotations

import json
import mmap
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from managing import tick_until
from waiting import DEADLINE

from doorman import Limits, ProcessManager, State, SynchronousManager, Task
from doorman.errors import LimitNotApplied, WorkerDied

MEGA = 1 << 20
ROOMY = 4096 * MEGA
TELL = """
import json, os, resource, sys
umask = os.umask(0)
kinds = [resource.RLIMIT_AS, resource.RLIMIT_CPU, resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE]
soft = [resource.getrlimit(kind)[0] for kind in kinds]
told = [*soft, os.getpriority(os.PRIO_PROCESS, 0), sorted(os.sched_getaffinity(0)), umask]
open(sys.argv[1], "w").write(json.dumps(told))
"""


def tell(path: str) -> None:
    exec(TELL.replace("sys.argv[1]", repr(path)), {})


def told(path: Path) -> list[Any]:
    return json.loads(path.read_text())


def allocate(size: int) -> int:
    with mmap.mmap(-1, size) as memory:
        return len(memory)


def hoard() -> None:
    kept = []
    while True:
        kept.append(bytearray(MEGA))


def burn() -> None:
    while True:
        pass


def run(manager: ProcessManager, task: Task) -> Task:
    manager.add_task(task)
    manager.run(2 * DEADLINE)
    assert task.done()
    return task


def all_limits() -> tuple[Limits, list[Any]]:
    cpu = min(os.sched_getaffinity(0))
    nice = min(19, os.getpriority(os.PRIO_PROCESS, 0) + 3)
    limits = Limits(memory=ROOMY, cpu=77, files=99, processes=3333, core=0, nice=nice, affinity={cpu}, umask=0o027)
    return limits, [ROOMY, 77, 99, 3333, 0, nice, [cpu], 0o027]


@pytest.mark.parametrize("wrapper", [(), ("env", "A=B")], ids=["forked", "wrapped"])
@pytest.mark.parametrize("kind", ["callable", "command"])
def test_all_limits_hold_in_the_tasks_process(local, tmp_path, kind, wrapper):
    limits, expected = all_limits()
    path = str(tmp_path / "told")
    if kind == "callable":
        task = Task(tell, path, limits=limits, wrapper=wrapper)
    else:
        task = Task.command([sys.executable, "-c", TELL, path], limits=limits, wrapper=wrapper)
    run(local, task).result(0)
    assert told(tmp_path / "told") == expected


def test_more_memory_than_the_limit_is_a_memory_error_that_is_told(local):
    task = run(local, Task(hoard, limits=Limits(memory=1024 * MEGA)))
    with pytest.raises(MemoryError):
        task.result(0)
    assert run(local, Task(allocate, 64 * MEGA, limits=Limits(memory=2048 * MEGA))).result() == 64 * MEGA


def test_more_processor_time_than_the_limit_is_a_signal(local):
    task = run(local, Task(burn, limits=Limits(cpu=1)))
    with pytest.raises(WorkerDied, match="SIGXCPU"):
        task.result(0)
    assert task.signal == signal.SIGXCPU


@pytest.mark.parametrize("kind", ["callable", "command"])
@pytest.mark.parametrize(
    ("limits", "says"),
    [
        (Limits(affinity={4000}), r"affinity=\{4000\} cannot be applied"),
        (Limits(affinity={0, 4000}), r"affinity=\{0, 4000\} cannot be applied"),
        (Limits(files=(1 << 62)), "files=4611686018427387904 cannot be applied"),
    ],
)
def test_what_cannot_be_applied_fails_the_task_before_its_code(local, tmp_path, kind, limits, says):
    task = Task(Path.touch, tmp_path / "ran") if kind == "callable" else Task.command(["touch", tmp_path / "ran"])
    task.limits = limits
    run(local, task)
    with pytest.raises(LimitNotApplied, match=says):
        task.result(0)
    assert task.state is State.FAILED
    assert not (tmp_path / "ran").exists()


def test_memory_that_a_process_takes_up_before_its_code_is_told(local):
    with pytest.raises(LimitNotApplied, match=r"memory=1048576 cannot be applied: .* before the task begins"):
        run(local, Task(len, "", limits=Limits(memory=MEGA))).result(0)


def test_a_program_may_have_less_memory_than_what_starts_it(local, tmp_path):
    script = f"ulimit -v > {tmp_path / 'told'}"
    assert run(local, Task.command(["sh", "-c", script], limits=Limits(memory=32 * MEGA))).result(0) == 0
    assert (tmp_path / "told").read_text().strip() == f"{32 * 1024}"


def test_the_next_task_is_not_limited(local, tmp_path):
    run(local, Task(tell, str(tmp_path / "1"), limits=all_limits()[0])).result(0)
    run(local, Task(tell, str(tmp_path / "2"))).result(0)
    assert told(tmp_path / "2")[2] == resource.getrlimit(resource.RLIMIT_NOFILE)[0]


def test_limits_need_a_process():
    with SynchronousManager() as manager, pytest.raises(ValueError, match="add it to a ProcessManager"):
        manager.add_task(Task(len, "", limits=Limits(nice=3)))


@pytest.mark.parametrize(
    ("values", "error", "says"),
    [
        ({"memory": 0}, ValueError, "memory"),
        ({"memory": 1e9}, TypeError, "memory"),
        ({"cpu": 0.5}, TypeError, "cpu"),
        ({"cpu": True}, TypeError, "cpu"),
        ({"files": -1}, ValueError, "files"),
        ({"processes": 1 << 64}, ValueError, "processes"),
        ({"nice": 20}, ValueError, "nice"),
        ({"umask": 0o1000}, ValueError, "umask"),
        ({"affinity": 0}, TypeError, "affinity"),
        ({"affinity": "01"}, TypeError, "affinity"),
        ({"affinity": []}, ValueError, "affinity"),
        ({"affinity": {-1}}, ValueError, "affinity"),
    ],
)
def test_limits_that_make_no_sense_are_refused(values, error, says):
    with pytest.raises(error, match=f"limit {says} "):
        Limits(**values)


# -- the initializer -------------------------------------------------------------------------------------------


def test_the_initializer_runs_in_each_process_before_the_tasks_code(short_path):
    def prepare() -> None:
        os.environ["PREPARED"] = f"{os.getpid()}"

    with ProcessManager(f"unix://{short_path}/m", initializer=prepare) as manager:
        first, second = (manager.add_task(Task(os.getenv, "PREPARED")) for _ in range(2))
        program = manager.add_task(Task.command(["sh", "-c", 'test "$PREPARED" = $$']))
        manager.run(DEADLINE)
        assert [int(task.result(0)) for task in (first, second)] == [first.identity.pid, second.identity.pid]
        assert program.result(0) == 0


@pytest.mark.parametrize("kind", ["callable", "command"])
def test_an_initializer_that_raises_fails_the_task_with_its_error(short_path, tmp_path, kind):
    def broken() -> None:
        raise LookupError("no such model")

    with ProcessManager(f"unix://{short_path}/m", initializer=broken) as manager:
        task = Task(Path.touch, tmp_path / "ran") if kind == "callable" else Task.command(["touch", tmp_path / "ran"])
        with pytest.raises(LookupError, match="no such model"):
            run(manager, task).result(0)
    assert not (tmp_path / "ran").exists()


def test_an_initializer_that_is_none_is_refused(short_path):
    with pytest.raises(TypeError, match="cannot be called"):
        ProcessManager(f"unix://{short_path}/m", initializer="prepare")


def test_a_task_that_is_limited_says_so_while_it_runs(local, tmp_path):
    """The limit is the task's alone: a running neighbour keeps its own."""
    task = local.add_task(Task(burn, limits=Limits(nice=19)))
    tick_until(local, lambda: task.state is State.RUNNING)
    tick_until(local, lambda: os.getpriority(os.PRIO_PROCESS, task.identity.pid) == 19)
    task.cancel()
