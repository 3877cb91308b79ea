"""The catalogue of identity failures: what numbers and clocks are worth. Entries I5 to I9 and I20."""

from __future__ import annotations

import itertools
import json
import re
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import reapers
import reuse
from chores import stay
from managing import behind, end, overheard, tick_until
from namespaces import apart, host, inside, needs_namespaces
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.process import start_time

NESTED = {
    "namespace": ("unshare", "--pid", "--fork", "--mount-proc"),
    "namespace with its host's proc": ("unshare", "--pid", "--fork"),
    "namespace in a namespace": ("unshare", "--pid", "--fork", "--mount-proc") * 2,
}
"""Wrappers in which the task calls itself number 1."""


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/manager", grace=0.3) as manager:
        yield manager


# -- I5, I6, I7: the number of an ended process is given again -----------------------------------------------------


def test_I05_no_stranger_with_a_tasks_old_number_is_ever_signalled():
    """200 strangers get the numbers of 200 tasks, before their manager has heard that they have ended."""
    told = inside(reuse.of_tasks, 200)
    assert told == {"reused": 200, "same inode": 0, "hit": 0, "opened": 0, "state": 200}


def test_I05_no_stranger_is_signalled_or_reaped_where_the_task_was_a_child_of_the_manager():
    assert inside(reuse.of_stolen_children, 200) == {"reused": 200, "hit": 0, "reaped": 0, "claimed to know": 0}


def test_I06_a_stranger_with_a_wrappers_old_number_has_no_descendants_of_ours():
    assert inside(reuse.of_wrappers, 20) == {"reused": 20, "believed": 0}


def test_I06_a_number_given_again_before_it_was_held_is_not_held():
    assert inside(reuse.of_children_not_held_yet, 20) == {"reused": 20, "held": 0, "hit": 0}


def test_I06_where_the_kernel_reaps_at_once_tasks_run_and_commands_are_refused_loudly():
    """Who ignores SIGCHLD has no zombies to pin a number: none of his children can be held surely."""
    told = apart(reapers.with_children_ignored)
    state, error, why = told.pop("command")
    assert told == {"value": [2, 1], "code": 7}
    assert (state, error) == ("failed", "WorkerDied")
    assert "SIGCHLD" in why


def test_I07_number_and_start_time_together_are_the_same_and_the_inode_is_not():
    told = inside(reuse.of_the_same_tick, 50)
    assert told == {"same start": 50, "same inode": 0, "opened": 0, "hit": 0}


# -- I8: another PID namespace -------------------------------------------------------------------------------------


def check(manager: ProcessManager, wrappers: dict[str, tuple[str, ...]], folder: Path) -> None:
    """Run a task in each namespace; it calls itself 1, and is known and stopped by its number here."""
    heard = overheard(manager)
    found = behind(manager, wrappers, folder)
    for name, task, said, wrapper in found:
        known = task.identity
        assert said == (1, known.inode) == (known.pid_inside, known.inode), name
        assert known.pid not in (1, wrapper), name
        numbers = re.search(r"NSpid:\t(.*)\n", Path(f"/proc/{known.pid}/status").read_text())[1].split("\t")
        assert (numbers[0], numbers[-1]) == (f"{known.pid}", "1"), name
        assert known.start_time == start_time(known.pid), name
        assert known.pid_namespace == str(Path(f"/proc/{known.pid}/ns/pid").readlink()), name
        assert known.pid_namespace != str(Path("/proc/self/ns/pid").readlink()), name
    assert {words["started"] for words in heard} == {None}, "of its own times it says nothing"
    end(manager, *(each.task for each in found))
    assert not manager.refused


def test_I08_a_task_that_calls_itself_1_is_known_by_its_number_here(short_path, tmp_path):
    needs_namespaces()
    with ProcessManager(f"unix://{short_path}/m", grace=0.1) as manager:
        check(manager, NESTED, tmp_path)


def test_I08_a_task_that_calls_itself_1_is_known_over_any_transport(crossing_location, tmp_path):
    needs_namespaces()
    with ProcessManager(crossing_location, grace=0.1) as manager:
        check(manager, {"nested": NESTED["namespace"]}, tmp_path)


# -- I9: another host, the same number -----------------------------------------------------------------------------


def test_I09_the_same_number_on_another_host_is_another_process():
    """Two hosts of one boot, as two containers are, each with a task under number 5000."""
    needs_namespaces("--uts")
    with host(reuse.of_another_host, 5000) as one, host(reuse.of_another_host, 5000) as other:
        words = [json.loads(each.stdout.readline()) for each in (one, other)]
        (first, *_), (second, *_) = words
        assert (first["pid"], first["boot_id"]) == (second["pid"], second["boot_id"]) == (5000, first["boot_id"])
        assert all(first[name] != second[name] for name in ("node_id", "pid_namespace", "inode"))
        for each, others in ((one, words[1]), (other, words[0])):
            told = json.loads(each.communicate(json.dumps(others) + "\n", timeout=DEADLINE)[0].split("\n")[0])
            refused = dict.fromkeys(("opened", "opened without inode", "believed", "same"), False)
            assert told == refused | {"alive": True}


# -- I20: clocks jump ----------------------------------------------------------------------------------------------


def test_I20_no_jump_of_the_wall_clock_changes_anything(manager, monkeypatch):
    """Every time that somebody asks, it is ten years later or earlier."""
    jumps = itertools.cycle((3.2e8, -3.2e8, 0.0))
    wall = time.time
    monkeypatch.setattr(time, "time", lambda: wall() + next(jumps))
    monkeypatch.setattr(time, "time_ns", lambda: int((wall() + next(jumps)) * 1e9))
    ran = [manager.add_task(Task(divmod, number, 3)) for number in range(10)]
    expires, stays = manager.add_task(Task(stay, expires_in=0.1)), manager.add_task(Task(stay))
    tick_until(manager, lambda: expires.done() and stays.identity and all(task.done() for task in ran))
    assert [task.result(0) for task in ran] == [divmod(number, 3) for number in range(10)]
    assert expires.state is State.EXPIRED
    end(manager, stays)


SHIFTED = ("unshare", "--time", "--boottime", "1000000", "--monotonic", "1000000", "--fork")
"""A wrapper for whose processes the kernel's clocks are 12 days ahead, and so are the start times that they see."""


def test_I20_a_task_with_other_clocks_is_known_by_what_the_manager_sees(manager, tmp_path):
    needs_namespaces("--time")
    heard = overheard(manager)
    [(_, task, said, _)] = behind(manager, {"shifted": SHIFTED}, tmp_path)
    assert (task.identity.pid, task.identity.inode) == said
    assert heard[0]["started"] is None, "it would be wrong"
    assert task.identity.start_time == start_time(task.identity.pid)
    end(manager, task)


def test_I20_a_manager_with_other_clocks_tells_strangers_as_surely():
    told = inside(reuse.of_tasks, 10, flags=("--time", "--boottime", "1000000", "--monotonic", "1000000"))
    assert (told["reused"], told["hit"], told["opened"], told["state"]) == (10, 0, 0, 10)
