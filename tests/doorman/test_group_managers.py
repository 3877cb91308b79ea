"""Group managers: what they share with the manager that they lead, with others, and with its rules."""

from __future__ import annotations

import os
import signal

import pytest
from chores import obey
from grouping import Watched, begin, run
from managing import tick_until
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, Rule, State, Task, current_task
from doorman.errors import TaskCancelled
from remit import Server

# -- rules -----------------------------------------------------------------------------------------------------


def test_rules_hold_within_a_group(processes):
    rule = Rule(processes=1)
    processes.add_rule(rule)
    heard: list[str] = []
    processes.add_group([Watched(heard, name) for name in ("a1", "a2", "a3")])
    processes.add_group([Watched(heard, "b1")])
    run(processes)
    assert heard == [f"{name} {state}" for name in ("a1", "a2", "a3", "b1") for state in ("running", "done")]
    assert processes.remove_rule(rule)
    assert not processes.remove_rule(rule)


def test_the_members_of_a_group_run_together(processes, short_path):
    """Each waits for the other's word."""
    fifo = short_path / "fifo"
    os.mkfifo(fifo)
    reader = Task(lambda: fifo.read_text())
    writer = Task(lambda: fifo.write_text("together"))
    processes.add_group([reader, writer])
    run(processes)
    assert reader.result() == "together"


# -- managers of managers --------------------------------------------------------------------------------------


def test_a_group_manager_may_lead_another(short_path):
    heard: list[str] = []
    with GroupManager(GroupManager(ProcessManager(f"unix://{short_path}/m"))) as outer:
        fifo = short_path / "fifo"
        os.mkfifo(fifo)
        reader = Task(lambda: fifo.read_text())
        outer.add_group([reader, Task(lambda: fifo.write_text("together"))])
        outer.add_task(Watched(heard, "b"))
        last = outer.add_task(Task(len, "abc"))
        assert last.result(DEADLINE) == 3
        assert reader.result() == "together"
        run(outer)
    assert heard == ["b running", "b done"]


def test_two_group_managers_may_share_a_manager_and_do_not_wait_for_each_other(short_path):
    with ProcessManager(f"unix://{short_path}/m") as inner:
        slow, quick = GroupManager(inner), GroupManager(inner)
        running = slow.add_task(Task(signal.pause))
        never = slow.add_task(Task(len, "abc"))
        quick.add_task(Task(len, "abc"))
        last = quick.add_task(Task(len, "ab"))
        begin(slow, running)
        assert last.result(DEADLINE) == 2
        assert never.state is State.WAITING


def test_listeners_of_the_inner_manager_hear_the_members(groups):
    heard: list[int] = []
    groups.server.add_listener("progress", heard.append)

    def speak(number: int) -> None:
        current_task().emit("progress", number)

    for number in range(3):
        groups.add_task(Task(speak, number))
    run(groups)
    assert heard == [0, 1, 2]


def test_run_ends_when_its_time_is_over(processes):
    task = processes.add_task(Task(signal.pause))
    later = processes.add_task(Task(len, "abc"))
    processes.run(0.05)
    assert not task.done()
    assert not later.done()


def test_run_sleeps_while_nothing_happens(processes, monkeypatch):
    task = processes.add_task(Task(signal.pause))
    processes.add_task(Task(len, "abc"))
    begin(processes, task)
    ticks: list[bool] = []
    tick = processes.tick
    monkeypatch.setattr(processes, "tick", lambda: ticks.append(tick()) or ticks[-1])
    processes.run(0.2)
    assert len(ticks) < 20


# -- what it tells ---------------------------------------------------------------------------------------------


def test_its_tasks_are_told_from_those_of_others(short_path):
    with ProcessManager(f"unix://{short_path}/m", rules=[Rule(processes=2)]) as inner:
        mine, others = GroupManager(inner), GroupManager(inner)
        foreign = others.add_task(Task(signal.pause))
        begin(others, foreign)
        first, second = mine.add_group([Task(signal.pause), Task(len, "abc")])
        third = mine.add_task(Task(len, "ab"))
        begin(mine, first)
        assert (mine.running, mine.waiting) == ((first,), (second, third))
        assert (others.running, others.waiting) == ((foreign,), ())
        mine.stop()
        tick_until(mine, first.done)
        assert [task.state for task in (first, second, third)] == [State.CANCELLED] * 3
        assert foreign.state is State.RUNNING
        assert mine.rules is inner.rules


def test_what_holds_a_task_back_is_told_with_figures(processes):
    processes.add_rule(Rule(processes=1))
    first, second = processes.add_group([Task(signal.pause), Task(len, "abc")])
    processes.add_group([Task(len, "abc")])
    later = processes.add_task(Task(len, "abc"))
    begin(processes, first)
    assert processes.why(first) is None
    assert processes.why(second) == "1 of 1 processes run"
    assert (
        processes.why(later)
        == "2 of 2 tasks of the current group have not finished; groups between that and its own: 1"
    )


def test_it_emits_to_its_tasks(processes, tmp_path):
    task = processes.add_task(Task(obey, tmp_path / "up"))
    tick_until(processes, (tmp_path / "up").exists)
    processes.emit_to(task, "word", "from above")
    processes.emit_to(task, "stop")
    assert task.result(DEADLINE) == ["from above"]


# -- adding while it ticks -------------------------------------------------------------------------------------


def test_a_listener_may_add_a_group_while_its_manager_ticks(groups):
    """A group that is added from within a tick comes after all that were added before."""
    heard: list[str] = []
    groups.server.add_listener("more", lambda name: groups.add_task(Watched(heard, name)))

    def ask_for_more() -> None:
        current_task().emit("more", "c")

    groups.add_task(Watched(heard, "a", ask_for_more))
    groups.add_task(Watched(heard, "b"))
    run(groups)
    assert heard == [f"{name} {state}" for name in "abc" for state in ("running", "done")]


def test_a_group_may_be_added_when_a_task_enters_a_state(groups):
    """As a subclass does that plans the next step when one has ended: the deepest place within a tick."""
    heard: list[str] = []

    class Chained(Watched):
        def _set_state(self, state: State) -> None:
            super()._set_state(state)
            if self.done() and len(self.name) < 4:
                groups.add_group([Chained(heard, self.name + "a")])

    groups.add_task(Chained(heard, "a"))
    run(groups)
    assert heard == [f"{name} {state}" for name in ("a", "aa", "aaa", "aaaa") for state in ("running", "done")]


def test_what_a_closed_manager_does_not_take_is_cancelled(short_path):
    with Server(f"unix://{short_path}/m") as server:
        inner = ProcessManager(server)
        groups = GroupManager(inner)
        tasks = groups.add_group([Task(len, "abc"), Task(len, "ab")])
        inner.close()
        with pytest.raises(ValueError, match="closed"):
            groups.tick()
        for task in tasks:
            with pytest.raises(TaskCancelled, match="refused by its manager: this manager is closed"):
                task.result(DEADLINE)
        groups.close()
