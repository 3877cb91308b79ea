"""An interrupt, or a nested call, at any line of a manager loses no task and leaves no process.

By default each test takes a sample of the lines; DOORMAN_LINES=all takes each.
"""

from __future__ import annotations

import contextlib
import gc
import os
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from descriptors import open_descriptors
from injection import FOLDERS, Injection, interrupt
from injection import call_with as call_with_any
from waiting import DEADLINE

from doorman import Crew, GroupManager, ProcessExecutor, ProcessManager, Rule, State, SynchronousManager, Task
from doorman.journal.journal import Journal
from remit.errors import ReentrantTick

SAMPLE = 9
"""Lines of a call that are taken by default."""
SPARE = 12
"""Descriptors that interrupts may leave: Python may raise before the number of a new one is stored anywhere."""
FINAL = {State.DONE, State.FAILED, State.CANCELLED}
pytestmark = [
    pytest.mark.timeout(600),
    # Python ignores what is raised in a finalizer, and pytest would report it.
    pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning"),
]


def call_with(action: Callable[[], object], line: int, call: Callable[[], Any]) -> Injection:
    """Inject at the lines of Doorman: Remit's have their own tests."""
    return call_with_any(action, line, call, folders=FOLDERS[1:2])


def lines_of(call: Callable[[], Injection], sample: int = SAMPLE) -> Iterator[int]:
    """Yield the lines at which to inject: all, or a sample, the same in each run."""
    lines = range(1, call().lines + 1)
    if os.environ.get("DOORMAN_LINES") == "all":
        yield from lines
        return
    chosen = random.Random(7).sample(lines, min(sample, len(lines)))
    yield from sorted(chosen)


def children() -> set[int]:
    return {int(pid) for each in Path("/proc/self/task").iterdir() for pid in (each / "children").read_text().split()}


@contextlib.contextmanager
def noted(name: str, line: int) -> Iterator[None]:
    """Note the place of an injection in an error."""
    try:
        yield
    except BaseException as error:
        error.add_note(f"injected at line {line} of {name}")
        raise


def three() -> int:
    return 3


class Ended:
    """Counts how often a task ends."""

    def __init__(self, task: Task) -> None:
        self.count = 0
        self.task = task
        task.future.add_done_callback(self._count)

    def _count(self, _: object) -> None:
        self.count += 1


def finish(manager: Any, *tasks: Task) -> None:
    """Use a manager after an interrupt: its tasks end, and another one too."""
    late = manager.add_task(Task(three))
    manager.run(DEADLINE)
    assert late.state is State.DONE, late
    assert not manager.busy
    assert (manager.waiting, manager.running) == ((), ())
    for task in tasks:
        if task._manager is None:
            manager.add_task(task)  # The interrupted call had not added it.
    manager.run(DEADLINE)
    for task in tasks:
        assert task.state in FINAL, task
        assert task.future.done()


CALLS: dict[str, Callable[[ProcessManager, Task], object]] = {
    "add_task": lambda manager, task: manager.add_task(Task(three)),
    "tick": lambda manager, task: manager.tick(),
    "run": lambda manager, task: manager.run(DEADLINE),
    "result": lambda manager, task: task.result(DEADLINE),
    "cancel": lambda manager, task: task.cancel(),
    "future": lambda manager, task: task.future.cancel(),
    "add_rule": lambda manager, task: manager.add_rule(Rule(processes=3)),
    "stop": lambda manager, task: manager.stop(),
}


@contextlib.contextmanager
def nothing_left(journal: Path | None = None) -> Iterator[None]:
    """Check that a block leaves no process, no descriptors and a readable journal."""
    before, known = open_descriptors(), children()
    yield
    gc.collect()
    assert children() <= known
    assert open_descriptors() <= before + SPARE
    if journal is not None:
        assert all(finished.state in FINAL for finished in Journal.read(journal))


def injected(manager: ProcessManager, name: str, line: int, action: Callable[[], object] = interrupt) -> Injection:
    """Inject an action into a call at a line; check that the manager works on, and that each task ends once."""
    running, waiting = (manager.add_task(Task(three, retries=1)) for _ in range(2))
    ends = Ended(running), Ended(waiting)
    if name in ("cancel", "future", "stop", "result"):
        manager.tick()
    outcome = call_with(action, line, lambda: CALLS[name](manager, running))
    finish(manager, running, waiting)
    if name in ("add_task", "tick", "run", "result", "add_rule"):
        assert (running.state, waiting.state) == (State.DONE, State.DONE), (running, waiting)
    assert [end.count for end in ends] == [1, 1]
    return outcome


def injected_close(location: str | None, line: int, journal: Path | None = None) -> Injection:
    """Interrupt the end of a manager's block; a second close ends what is left."""
    with nothing_left(journal):
        manager = ProcessManager(location, grace=1.0, journal=journal)
        tasks = [manager.add_task(Task(time.sleep, 60)) for _ in range(2)]
        while tasks[0].state is not State.RUNNING:
            manager.tick()
            manager.wait(0.1)
        outcome = call_with(interrupt, line, lambda: manager.__exit__(None, None, None))
        manager.close()
        assert [task.state for task in tasks] == [State.CANCELLED] * 2 or outcome.interrupted
        assert all(task.state in FINAL for task in tasks), tasks
    return outcome


@pytest.mark.parametrize("name", CALLS)
def test_an_interrupt_at_any_line_loses_no_task(name: str, short_path: Path) -> None:
    journal = short_path / "journal"
    with nothing_left(journal), ProcessManager(grace=1.0, journal=journal) as manager:
        for line in lines_of(lambda: injected(manager, name, 10**9)):
            with noted(name, line):
                injected(manager, name, line)


def test_an_interrupt_at_any_line_of_close_leaves_no_process(short_path: Path) -> None:
    for line in lines_of(lambda: injected_close(None, 10**9), SAMPLE // 3):
        with noted("close", line):
            injected_close(None, line)


@pytest.mark.parametrize("name", ["add_task", "run", "cancel"])
def test_a_nested_call_at_any_line_is_executed(name: str) -> None:
    added: list[Task] = []

    def nested() -> None:
        added.append(manager.add_task(Task(three)))
        other = manager.add_task(Task(three))
        assert other.cancel()
        with contextlib.suppress(ReentrantTick):
            manager.tick()

    with nothing_left(), ProcessManager(grace=1.0) as manager:
        for line in lines_of(lambda: injected(manager, name, 10**9)):
            with noted(name, line):
                injected(manager, name, line, nested)
                assert [task.result(DEADLINE) for task in added] == [3] * len(added)


def in_process(kind: Callable[[], Any], line: int, action: Callable[[], object] | None = None) -> Injection:
    """Inject into `add_task` and `run` of a manager without processes; each of its tasks ends once."""
    with kind() as manager:
        tasks = [Task(three) for _ in range(3)]
        ends = list(map(Ended, tasks))

        def call() -> None:
            for task in tasks:
                manager.add_task(task)
            manager.run(DEADLINE)

        outcome = call_with(action or interrupt, line, call)
        finish(manager, *tasks)
    assert [end.count for end in ends] == [1, 1, 1]
    return outcome


@pytest.mark.parametrize(
    "kind", [SynchronousManager, lambda: GroupManager(SynchronousManager())], ids=["alone", "groups"]
)
def test_an_interrupt_of_a_manager_without_processes_loses_no_task(kind: Callable[[], Any]) -> None:
    for line in lines_of(lambda: in_process(kind, 10**9), 60):
        with noted("run", line):
            in_process(kind, line)


def crew_call(crew: Crew, line: int) -> Injection:
    """Interrupt `submit` and `run` of a crew; each of its calls ends."""
    calls = [crew.submit(three) for _ in range(3)]

    def call() -> None:
        calls.append(crew.submit(three))
        crew.run(DEADLINE)

    outcome = call_with(interrupt, line, call)
    calls.append(crew.submit(three))
    crew.run(DEADLINE)
    assert not crew.busy
    assert all(each.done() for each in calls)
    assert calls[-1].result(DEADLINE) == 3
    return outcome


def test_an_interrupt_of_a_crew_loses_no_call() -> None:
    with nothing_left(), ProcessManager(grace=1.0) as manager, Crew(manager, 2) as crew:
        for line in lines_of(lambda: crew_call(crew, 10**9)):
            with noted("crew", line):
                crew_call(crew, line)


def executor_call(line: int, action: Callable[[ProcessExecutor], object] | None = None) -> Injection:
    """Inject into the first `submit`, `map` and `shutdown` of an executor; what was submitted ends."""
    with nothing_left(), ProcessExecutor(1) as executor:

        def call() -> None:
            executor.submit(three)
            list(executor.map(abs, [1]))
            executor.shutdown()

        outcome = call_with(interrupt if action is None else lambda: action(executor), line, call)
        executor.shutdown()
    return outcome


def test_an_interrupt_or_a_nested_submit_of_an_executor_leaves_it_usable() -> None:
    def nested(executor: ProcessExecutor) -> None:
        with contextlib.suppress(RuntimeError):  # WouldDeadlock, or after the shutdown.
            executor.submit(three)

    for line in lines_of(lambda: executor_call(10**9), SAMPLE // 4):
        with noted("executor", line):
            executor_call(line)
            executor_call(line, nested)
