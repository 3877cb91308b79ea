"""Very many processes, started as fast as the machine allows: each is its task's, nothing is refused, nobody stays.

``DOORMAN_TASKS=10000 REMIT_TRANSPORTS=unix pytest tests/doorman/test_scale.py``, or ``make tasks``, does it at length.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

import pytest
from chores import vouch
from internals import launcher_of
from mortals import inode_of
from threads import of_each_thread
from waiting import wait_until

from doorman import ProcessManager, State, Task

TASKS = int(os.environ.get("DOORMAN_TASKS", "200"))
SLOWEST = 10
"""Tasks a second below which something is wrong, however busy the machine is."""


def alive(inodes: Iterable[int]) -> set[int]:
    """Return those by which the kernel knows a process that lives now."""
    return {*inodes} & {inode_of(int(entry.name)) for entry in Path("/proc").iterdir() if entry.name.isdigit()}


def children(pid: int) -> set[str]:
    return {child for children in of_each_thread("children", pid) for child in children.split()}


@pytest.mark.timeout(max(180, TASKS // SLOWEST))
def test_each_of_very_many_processes_is_its_tasks_own(crossing_location):
    """All results are there, and each process is the one that was recorded for it."""
    with ProcessManager(crossing_location, preload=["chores"]) as manager:
        tasks = [manager.add_task(Task(vouch, number)) for number in range(TASKS)]
        manager.run(TASKS / SLOWEST)
        assert {task.state for task in tasks} == {State.DONE}
        zygote = launcher_of(manager).pid
        wait_until(lambda: not children(zygote))
        refused = dict(manager.refused)

    said = [task.result() for task in tasks]
    recorded = [(task.identity.pid, task.identity.inode, number) for number, task in enumerate(tasks)]
    assert said == recorded, "each is the process that it says it is"
    inodes = {inode for _, inode, _ in said}
    assert len(inodes) == TASKS, "no two are the same process"
    assert {task.attempt for task in tasks} == {1}, "none was tried twice"
    assert {task.exit_code for task in tasks} == {0}
    assert refused == {}
    assert not alive(inodes)
    wait_until(lambda: not Path(f"/proc/{zygote}").exists())
