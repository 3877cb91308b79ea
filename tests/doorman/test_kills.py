"""Managers killed at random moments: with a journal no task is lost, none is run twice in vain, and no process stays.

``DOORMAN_KILLS=1000 REMIT_TRANSPORTS=unix pytest tests/doorman/test_kills.py``, or ``make kills``, does it at length.
"""

from __future__ import annotations

import contextlib
import os
import random
import select
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest
from harvest import kind_of
from mortals import fixed, inode_of
from waiting import DEADLINE, wait_until

from doorman import Journal
from doorman.errors import WorkerDied

KILLS = int(os.environ.get("DOORMAN_KILLS", "3"))
SEED = int(os.environ.get("DOORMAN_SEED", "1"))
TASKS_PER_KILL = 8
LONGEST_LIFE = 0.6
"""Seconds that a manager lives at the most, from the moment when it has read its journal."""
HARVEST = str(Path(__file__).parents[1] / "support" / "harvest.py")


class Mark(NamedTuple):
    """What a task's own code has left of one attempt."""

    name: str
    attempt: str
    pid: str
    inode: str
    kind: str

    @property
    def alive(self) -> bool:
        return str(inode_of(int(self.pid))) == self.inode


def marks(folder: Path) -> list[Mark]:
    with contextlib.suppress(FileNotFoundError):
        return [Mark(*line.split()) for line in (folder / "marks").read_text().splitlines()]
    return []


def word(manager: subprocess.Popen[str], timeout: float) -> str:
    """Return what the manager says within so many seconds; nothing if it says nothing."""
    assert manager.stdout is not None
    ready, _, _ = select.select([manager.stdout], [], [], timeout)
    return manager.stdout.readline().strip() if ready else ""


def lived(arguments: list[str], chance: random.Random | None) -> bool:
    """Run a manager, with a chance to be killed before it is up, and at the latest a while after; True if it ends."""
    with subprocess.Popen([sys.executable, HARVEST, *arguments], stdout=subprocess.PIPE, text=True) as manager:
        try:
            if chance is None:
                return word(manager, DEADLINE) == "up" and word(manager, DEADLINE * 4) == "done"
            if chance.random() < 0.1:
                word(manager, chance.uniform(0, 1.0))
                return False
            assert word(manager, DEADLINE) == "up"
            return word(manager, chance.uniform(0, LONGEST_LIFE)) == "done"
        finally:
            manager.kill()


@pytest.mark.timeout(max(180, 10 * KILLS))
def test_managers_killed_at_random_lose_no_task_and_leave_no_process(crossing_location, tmp_path):
    place, tasks = fixed(crossing_location), TASKS_PER_KILL * KILLS
    chance = random.Random(f"{SEED} {place.scheme}")
    arguments = [str(place), str(tmp_path), str(tasks)]
    checked = 0
    for _ in range(KILLS):
        lived(arguments, chance)
        there = marks(tmp_path)
        orphans = [mark for mark in there[checked:] if mark.kind != "detached"]
        wait_until(lambda orphans=orphans: not any(mark.alive for mark in orphans))
        checked = len(there)
    assert lived(arguments, None)

    ends = {finished.name: finished for finished in Journal.read(tmp_path / "journal")}
    assert sorted(ends) == sorted(f"t{number}" for number in range(tasks)), "each once, and none is missing"
    tried = marks(tmp_path)
    assert max(Counter((mark.name, mark.attempt) for mark in tried).values()) == 1, "no attempt ran twice"
    for number in range(tasks):
        finished = ends[f"t{number}"]
        last = max((int(mark.attempt) for mark in tried if mark.name == finished.name), default=0)
        check(kind_of(number), finished, last)
    assert not any(mark.alive for mark in tried if mark.kind != "detached")
    wait_until(lambda: not any(mark.alive for mark in tried))
    left = tmp_path / "journal.d"
    wait_until(lambda: not list(left.glob("*")) or not lived(arguments, None))
    assert not list(left.glob("*")), "what came too late is swept by a later manager"


def check(kind, finished, last):
    """Each kind of task has the end that the journal can promise."""
    value, error = finished.opened()
    if finished.state == "lost":
        assert kind in ("plain", "failing"), f"{kind} tasks are not lost: {finished}"
        assert isinstance(error, WorkerDied)
    elif kind == "failing":
        assert (finished.state, str(error), last) == ("failed", finished.name, 1)
    else:
        assert (finished.state, value, error) == ("done", finished.name, None)
        assert last == finished.attempt
        assert kind == "retried" or last == 1, "what outlives its manager runs once"
