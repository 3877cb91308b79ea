"""Harvest: a manager that goes through a list of tasks with a journal, to be killed again and again.

Run as ``python harvest.py LOCATION FOLDER TASKS``. Says ``up`` when it has read its journal, ``done`` when all is over.
"""

from __future__ import annotations

import os
import random
import sys
import time
from pathlib import Path

from doorman import ProcessManager, Task, current_task
from doorman.process import Process

KINDS = ("plain", "retried", "detached", "failing")


def kind_of(number: int) -> str:
    """Return what kind of task has this number."""
    return KINDS[number % len(KINDS)]


def reap(folder: str, name: str, kind: str, pause: float) -> str:
    """Task: leave a mark for this attempt, work for a while, and end as its kind does."""
    with Process.open(os.getpid()) as own:
        mark = f"{name} {current_task().attempt} {own.pid} {own.inode} {kind}\n"
    descriptor = os.open(f"{folder}/marks", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.write(descriptor, mark.encode())
    os.close(descriptor)
    time.sleep(pause)
    if kind == "failing":
        raise ValueError(name)
    return name


def wanted(folder: Path, number: int) -> Task:
    """Make the task of a number."""
    kind, name = kind_of(number), f"t{number}"
    policy = {"retried": {"retries": 10_000}, "detached": {"detach": True}}.get(kind, {})
    return Task(reap, str(folder), name, kind, random.Random(number).uniform(0, 0.05), name=name, **policy)


def main(location: str, folder: Path, tasks: int) -> None:
    """Add what is not in the journal yet, a few at a time, and see all of it to its end."""
    with ProcessManager(location, journal=folder / "journal") as manager:
        known = {task.name for task in manager.recovered}
        assert len(known) == len(manager.recovered), "a task was recovered twice"
        missing = [number for number in range(tasks) if f"t{number}" not in known]
        print("up", flush=True)
        while missing or manager.busy:
            while missing and len(manager.waiting) + len(manager.running) < 8:
                manager.add_task(wanted(folder, missing.pop(0)))
            manager.tick()
            manager.wait(0.05)
        print("done", flush=True)


if __name__ == "__main__":
    import cloudpickle

    cloudpickle.register_pickle_by_value(sys.modules["__main__"])
    main(sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]))
