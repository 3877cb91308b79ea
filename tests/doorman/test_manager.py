"""Manager: real processes over every transport that reaches them."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Iterator

import pytest
from chores import count, obey, sign_in, stay
from managing import run, tick_until
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.errors import TaskCancelled, TaskFailed
from remit import Client, Server


@pytest.fixture
def manager(crossing_location) -> Iterator[ProcessManager]:
    """A manager over one of the transports."""
    with ProcessManager(crossing_location) as manager:
        yield manager


def test_results_exceptions_and_exit_codes_come_back_from_proven_processes(manager, tmp_path):
    def divide_by_nothing() -> float:
        return 1 / 0

    script = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))"
    task, failing = Task(divmod, 17, 5), Task(divide_by_nothing)
    command = Task.command([sys.executable, "-c", script, str(tmp_path / "pid")])
    run(manager, task, failing, command)
    assert (task.result(), task.state, task.exit_code) == ((3, 2), State.DONE, 0)
    assert task.identity.strength == "pidfd-inode"
    with pytest.raises(ZeroDivisionError) as raised:
        failing.result()
    assert isinstance(raised.value.__cause__, TaskFailed)
    assert "in divide_by_nothing" in str(raised.value.__cause__)
    assert failing.state is State.FAILED
    assert command.result() == 0
    assert int((tmp_path / "pid").read_text()) == command.identity.pid


def test_a_result_larger_than_any_frame_arrives_whole(manager):
    size = 9 * 1024 * 1024 + 7
    task = run(manager, Task(lambda: os.urandom(16) * (size // 16) + b"end"))
    assert len(task.result()) == size // 16 * 16 + 3
    assert task.result().endswith(b"end")


def test_500_tasks_at_once_each_have_their_own_proven_process(manager, tmp_path):
    """What the manager holds when it says go is what the process says of itself, which it can only say after go."""
    known: dict[Task, tuple[int, int | None, int]] = {}

    class Observed(Task):
        def _set_state(self, state: State) -> None:
            super()._set_state(state)
            if state is State.RUNNING:  # the manager says go only after this
                known[self] = (self.identity.pid, self.identity.inode, time.monotonic_ns())

    tasks = [Observed(sign_in, tmp_path / str(number)) for number in range(500)]
    run(manager, *tasks)
    wrong = []
    for number, task in enumerate(tasks):
        task.result(0)
        pid, inode, began = map(int, (tmp_path / str(number)).read_text().split())
        if known[task][:2] != (pid, inode) or known[task][2] > began:
            wrong.append((task, known[task], pid, inode, began))
    assert wrong == []
    assert len({identity[1] for identity in known.values()}) == 500
    assert not manager.refused


def test_each_event_of_10_children_arrives_once_and_in_order(manager):
    """Though each child ends right after its last emit."""
    heard: dict[int, list[int]] = {child: [] for child in range(10)}
    manager.server.add_listener("count", lambda child, number: heard[child].append(number))
    tasks = [Task(count, child, 1000) for child in range(10)]
    run(manager, *tasks)
    assert [task.exception(0) for task in tasks] == [None] * 10
    assert heard == {child: list(range(1000)) for child in range(10)}


def test_a_running_task_is_stopped_by_cancel(manager, tmp_path):
    task = manager.add_task(Task(stay, tmp_path / "up"))
    tick_until(manager, (tmp_path / "up").exists)
    assert manager.cancel(task)
    manager.run(DEADLINE)
    assert (task.state, task.signal) == (State.CANCELLED, signal.SIGTERM)
    with pytest.raises(TaskCancelled):
        task.result()
    assert not manager.cancel(task)


def test_strangers_and_garbage_are_counted_and_the_manager_goes_on(manager, tmp_path):
    task = manager.add_task(Task(stay, tmp_path / "up"))
    tick_until(manager, (tmp_path / "up").exists)
    attempt = task.identity.attempt
    with Client(manager.server.location) as stranger:
        stranger.emit("doorman.hello")
        stranger.emit("doorman.hello", "hello")
        stranger.emit("doorman.hello", {"attempt": ["no", "text"]})
        stranger.emit("doorman.hello", {"attempt": "nobody's"})
        stranger.emit("doorman.hello", {"attempt": attempt, "pid": os.getpid()})
        stranger.emit("doorman.report", attempt, 1, b"all is well", b"signed")
        stranger.emit("doorman.report", attempt, -1, "one", None)
        stranger.emit("doorman.report")
        tick_until(manager, lambda: stranger.flush(0.01))
    assert sum(manager.refused.values()) == 8
    assert task.state is State.RUNNING
    assert task.identity.pid == int((tmp_path / "up").read_text())
    manager.cancel(task)
    assert run(manager, Task(divmod, 9, 4)).result() == (2, 1)


def test_a_manager_emits_to_a_task(manager, tmp_path):
    task = manager.add_task(Task(obey, tmp_path / "up"))
    with pytest.raises(ValueError, match="does not run"):
        manager.emit_to(task, "word", "too early")
    tick_until(manager, (tmp_path / "up").exists)
    for number in range(100):
        manager.emit_to(task, "word", f"{number}")
    manager.emit_to(task, "stop")
    assert task.result(DEADLINE) == [f"{number}" for number in range(100)]
    with pytest.raises(ValueError, match="does not run"):
        manager.emit_to(task, "word", "too late")


def test_a_manager_may_share_a_server(crossing_location):
    with Server(crossing_location) as server:
        for _ in range(2):
            with ProcessManager(server) as manager:
                assert manager.add_task(Task(divmod, 7, 2)).result(DEADLINE) == (3, 1)
            assert "open" in repr(manager.server)
