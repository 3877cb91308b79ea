"""The ancestor's bugs and quirks, B1 to B10: what was wrong there, and that it is not so here, or is so on purpose.

Chosen by number: ``pytest -k B07``. B11 to B20 are in test_ancestor_processes.py; docs/coming-from-php.md tells all.
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pytest
from chores import sign_in, stay
from managing import behind, end, run, tick_until

from doorman import GroupManager, ProcessManager, Rule, Rules, State, Task
from doorman._scheduler.attempt import Attempt, Timeouts
from doorman.errors import TaskFailed
from doorman.load import Load

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/manager", grace=0.3) as manager:
        yield manager


def test_B01_no_member_of_a_group_is_lost(manager):
    """Fix: members that were cancelled, ended at once or died unseen made the next group overwrite the rest."""
    groups = GroupManager(manager)
    members = [
        groups.add_group([Task(len, "abc"), Task(stay, cancel_when=lambda: True), Task(os._exit, 0), Task(len, "ab")])
        for _ in range(5)
    ]
    while groups.tick():
        begun = [any(task.state is not State.WAITING for task in group) for group in members]
        ended = [all(task.done() for task in group) for group in members]
        assert begun[0]
        assert all(ended[: begun.count(True) - 1]), "a group began before the one before it had ended"
        groups.wait(0.05)
    ends = [[task.state for task in group] for group in members]
    assert ends == [[State.DONE, State.CANCELLED, State.FAILED, State.DONE]] * 5


def test_B02_all_members_of_a_group_start_in_one_tick(manager):
    """Fix: one member started per tick, so that a group of 100 needed 100 ticks to begin."""
    groups = GroupManager(manager)
    tasks = groups.add_group([Task(len, "abc") for _ in range(50)])
    groups.tick()
    assert groups.running == tasks
    groups.run()
    assert [task.result(0) for task in tasks] == [3] * 50


def test_B03_a_task_is_known_by_its_process_while_it_runs_without_a_recipe(manager, tmp_path):
    """Fix: the recipe for identity could not run, and dropped the task as ended once the right number had come."""
    task = manager.add_task(Task(stay, tmp_path / "up"))
    tick_until(manager, lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text())
    for _ in range(20):
        assert manager.tick()
    assert (task.state, manager.running) == (State.RUNNING, (task,))
    assert task.identity.pid == int((tmp_path / "up").read_text())
    end(manager, task)


class Unloadable:
    """Travels, and breaks on arrival, before any code of the task's."""

    def __reduce__(self) -> tuple[object, ...]:
        return int, ("no number",)


def test_B04_nothing_that_names_a_task_is_used_twice_and_a_broken_start_is_told(manager):
    """Fix: an object's address named it, which the next one may get; and only the task's own code could say hello."""
    addresses, names, secrets = set(), set(), set()
    for _ in range(500):
        task = Task(len, "abc")
        attempt = Attempt(task, b"", 1, Timeouts(3.0, 30.0))
        addresses.add(id(task))
        names |= {task.id, attempt.id}
        secrets.add(attempt.credential.secret)
    assert len(addresses) < 500, "no address was used again: the test proves nothing"
    assert (len(names), len(secrets)) == (1000, 500)
    task = run(manager, Task(len, Unloadable()))
    with pytest.raises(ValueError, match="no number") as raised:
        task.result()
    assert isinstance(raised.value.__cause__, TaskFailed)
    assert task.identity is not None


def test_B05_at_a_mass_start_each_task_has_its_own_process_behind_pipelines_too(manager, tmp_path):
    """Fix: a number was what the shell had started last, which behind a pipeline or a wrapper is another process."""
    tasks = [manager.add_task(Task(sign_in, tmp_path / f"{number}")) for number in range(30)]
    pipeline = ("sh", "-c", '"$@" | cat', "sh")
    found = behind(manager, {f"pipeline {number}": pipeline for number in range(3)}, tmp_path)
    tick_until(manager, lambda: all(task.done() for task in tasks))
    for _, task, said, started in found:
        assert (task.identity.pid, task.identity.inode) == said
        assert task.identity.pid != started
    for number, task in enumerate(tasks):
        pid, inode, _ = map(int, (tmp_path / f"{number}").read_text().split())
        assert (task.identity.pid, task.identity.inode) == (pid, inode)
    end(manager, *(each.task for each in found))


def test_B06_the_docs_name_the_bounds_of_a_rule_as_the_code_does():
    """Fix: the docs set a "load" where the code only knew a "usage"."""
    text = "\n".join(page.read_text() for page in DOCS.glob("*.md"))
    bounds = {field.name for field in fields(Rule) if field.name.endswith("_load")}
    assert set(re.findall(r"\bm(?:ini|axi)mum_\w+", text)) == bounds


def test_B07_a_rule_with_a_bound_alone_holds_and_bands_leave_no_gap(manager, tmp_path):
    """Fix: a rule without bands bounded nothing, and a load of 50.5 % was in neither of the bands 0-50 and 51-75."""
    manager.add_rule(Rule(processes=1))
    first, second = manager.add_task(Task(stay, tmp_path / "up")), manager.add_task(Task(stay))
    tick_until(manager, (tmp_path / "up").exists)
    assert (manager.running, manager.waiting) == ((first,), (second,))
    assert manager.why(second) == "1 of 1 processes run"
    bands = Rules(
        Rule(processes=1, minimum_processor_load=low, maximum_processor_load=high) for low, high in ((0, 50), (51, 75))
    )
    load = Load()
    load.add("any", 50.5, 0.0)
    assert bands.holds_back("any", load) == "1 of 1 processes run while processor load is 50 % (0 to 50 %)"


def test_B08_a_rule_for_a_handler_counts_that_handlers_processes(manager, tmp_path):
    """Fix: it compared its bound to the number of all processes."""
    manager.add_rule(Rule(processes=1, handler="mine"))
    others = [manager.add_task(Task(stay, tmp_path / f"{number}", handler="others")) for number in range(2)]
    tick_until(manager, lambda: all((tmp_path / f"{number}").exists() for number in range(2)))
    mine = manager.add_task(Task(stay, tmp_path / "mine", handler="mine"))
    second = manager.add_task(Task(stay, handler="mine"))
    tick_until(manager, (tmp_path / "mine").exists)
    assert manager.running == (*others, mine)
    assert manager.why(second) == "1 of 1 processes of handler 'mine' run"


def test_B09_a_bound_of_none_at_all_holds_the_first_task_back_too(manager):
    """Fix: the first task always ran, whatever the rules."""
    stop = Rule(processes=0)
    manager.add_rule(stop)
    task = manager.add_task(Task(len, "abc"))
    manager.tick()
    assert (manager.waiting, manager.why(task)) == ((task,), "0 of 0 processes run")
    manager.remove_rule(stop)
    assert task.result(30) == 3


def test_B10_a_burst_is_admitted_in_steps_as_its_load_shows(manager):
    """Fix: load was the average of a process's life, nothing for those just started, so that a burst came in whole."""
    manager.add_rule(Rule(processes=2, minimum_processor_load=50, maximum_processor_load=100))
    step = max(2, math.ceil(len(os.sched_getaffinity(0)) / 2))
    tasks = [manager.add_task(Task(stay)) for _ in range(step + 3)]
    manager.tick()
    assert len(manager.running) == step
    assert re.fullmatch(
        rf"{step} of 2 processes run while processor load is \d+ %, "
        rf"counting a busy core for each of {step} not measured yet \(50 to 100 %\)",
        manager.why(tasks[-1]),
    )
    known = len(manager.running)

    def all_run() -> bool:
        nonlocal known
        before, known = known, len(manager.running)
        assert known - before <= step, "more came in at once than can be seen"
        return not manager.waiting

    tick_until(manager, all_run)  # They turn out to be idle: no rule holds the others back.
