"""Each case in which a manager would do nothing, or too much, is logged once, with the next action."""

from __future__ import annotations

import ast
import gc
import logging
from typing import Any

import pytest
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, Rule, SynchronousManager, Task
from doorman.cores import available_cores


def one_half() -> float:
    return 1 / 0


def logged(caplog: pytest.LogCaptureFixture, level: int) -> list[str]:
    return [record.getMessage() for record in caplog.records if record.levelno == level and record.name == "doorman"]


@pytest.mark.parametrize("kind", [ProcessManager, SynchronousManager, lambda: GroupManager(SynchronousManager())])
def test_a_manager_that_is_left_with_waiting_tasks_is_reported(kind, caplog: pytest.LogCaptureFixture) -> None:
    with kind() as manager:
        manager.add_task(Task(print, name="first"))
        manager.add_task(Task(print))
    del manager
    gc.collect()
    [message] = logged(caplog, logging.WARNING)
    assert "2 tasks, the first of them 'first'" in message
    assert "call run()" in message


def test_a_manager_that_has_run_or_is_left_by_an_error_is_not_reported(caplog: pytest.LogCaptureFixture) -> None:
    with SynchronousManager() as manager:
        manager.add_task(Task(len, ""))
        manager.run(DEADLINE)
    with pytest.raises(AttributeError), SynchronousManager() as manager:
        manager.add_task(manager.add_task(Task(len, "")).missing())
    assert logged(caplog, logging.WARNING) == []


def test_an_error_that_is_never_retrieved_disturbs_no_parser() -> None:
    """Its record is written in a garbage collection, which may begin anywhere."""
    thresholds = gc.get_threshold()
    with SynchronousManager() as manager:
        for objects in (100, 300, 1000):
            task: Any = manager.add_task(Task(one_half))
            manager.run(DEADLINE)
            gc.disable()
            try:
                gc.collect()
                task.cycle = task
                del task
                gc.set_threshold(objects, 1, 1)
                gc.enable()
                assert ast.parse("f(a + b, [c / d for c in e])\n" * 50)
            finally:
                gc.set_threshold(*thresholds)
                gc.enable()
    del manager
    gc.collect()


def test_an_error_that_is_never_retrieved_is_logged_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    with ProcessManager() as manager:
        for retrieved in (False, True):
            task = manager.add_task(Task(one_half, name=f"retrieved: {retrieved}"))
            manager.run(DEADLINE)
            if retrieved:
                assert isinstance(task.exception(), ZeroDivisionError)
            del task
            gc.collect()
    [message] = logged(caplog, logging.ERROR)
    assert "'retrieved: False' failed" in message
    assert "call result()" in message
    assert "one_half" in caplog.text


@pytest.mark.parametrize("rules", [(), [Rule(processes=1000)]], ids=["no rule", "a rule"])
def test_many_processes_at_a_time_are_reported_without_a_rule(
    rules, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("doorman._scheduler.supervisor.MANY_PER_CORE", 1)
    count = available_cores() + 1
    with ProcessManager(rules=rules) as manager:
        for _ in range(count):
            manager.add_task(Task(len, ""))
        manager.tick()
        manager.stop()
        manager.run(DEADLINE)
    reported = [message for message in logged(caplog, logging.WARNING) if "add_rule(Rule(processes=" in message]
    assert len(reported) == (not rules)
