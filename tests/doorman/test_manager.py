"""Manager: real processes over every transport that reaches them."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from chores import count, die, fail_until, obey, sign_in, stay, stay_stubbornly, stay_with_child
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, Rule, State, Task
from doorman.errors import ResultTimeout, TaskAlreadyAdded, TaskCancelled, TaskExpired, TaskFailed, WorkerDied
from doorman.process import Process
from remit import Client, Server
from remit.errors import ReentrantTick


@pytest.fixture
def manager(crossing_location) -> Iterator[ProcessManager]:
    """A manager over one of the transports."""
    with ProcessManager(crossing_location) as manager:
        yield manager


@pytest.fixture
def local(short_path) -> Iterator[ProcessManager]:
    """A manager over a Unix socket, for what has nothing to do with the transport."""
    with ProcessManager(f"unix://{short_path}/manager", grace=1.0) as manager:
        yield manager


def run(manager: ProcessManager, *tasks: Task) -> Task:
    """Add the tasks and run them to their end."""
    for task in tasks:
        manager.add_task(task)
    manager.run(2 * DEADLINE)
    assert not manager.busy, f"not within {2 * DEADLINE} s: {tasks}"
    return tasks[0]


def tick_until(manager: ProcessManager, fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {manager.running}"
        manager.tick()
        if not fact():
            manager.wait(0.05)


def held(pid: int) -> Process | None:
    """Hold a process that may have ended already."""
    try:
        return Process.open(pid)
    except ProcessLookupError:
        return None


# -- over every transport --------------------------------------------------------------------------------------


def test_a_task_returns_what_its_callable_returns(manager):
    task = run(manager, Task(divmod, 17, 5))
    assert task.result() == (3, 2)
    assert task.state is State.DONE
    assert task.exit_code == 0
    assert task.identity.strength == "pidfd-inode"


def test_an_exception_comes_back_with_the_traceback_of_its_process(manager):
    def divide_by_nothing() -> float:
        return 1 / 0

    task = run(manager, Task(divide_by_nothing))
    with pytest.raises(ZeroDivisionError) as raised:
        task.result()
    assert isinstance(raised.value.__cause__, TaskFailed)
    assert "in divide_by_nothing" in str(raised.value.__cause__)
    assert task.state is State.FAILED


def test_a_result_larger_than_any_frame_arrives_whole(manager):
    size = 9 * 1024 * 1024 + 7
    task = run(manager, Task(lambda: os.urandom(16) * (size // 16) + b"end"))
    assert len(task.result()) == size // 16 * 16 + 3
    assert task.result().endswith(b"end")


def test_500_tasks_at_once_each_have_their_own_proven_process(manager, tmp_path):
    """What the manager holds when it says go is what the process says of itself, which it can only say after go."""
    known: dict[Task, tuple[int, int | None, int]] = {}

    class Observed(Task):
        def enter(self, state: State) -> None:
            super().enter(state)
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


def test_a_command_proves_itself_and_becomes_the_program(manager, tmp_path):
    script = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid()))"
    task = run(manager, Task.command([sys.executable, "-c", script, str(tmp_path / "pid")]))
    assert task.result() == 0
    assert int((tmp_path / "pid").read_text()) == task.identity.pid


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
        stranger.emit("doorman.result", attempt, 0, 1, b"all is well", b"signed")
        stranger.emit("doorman.result", attempt, -1, "one", None)
        stranger.emit("doorman.result")
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
            assert manager.server.is_open


# -- ending ----------------------------------------------------------------------------------------------------


def test_what_ignores_sigterm_is_killed_after_the_grace_with_its_whole_group(local, tmp_path):
    task = local.add_task(Task(stay_with_child, tmp_path / "up"))
    tick_until(local, lambda: (tmp_path / "up").exists() and (tmp_path / "up").read_text())
    grandchild = held(int((tmp_path / "up").read_text()))
    stubborn = local.add_task(Task(stay_stubbornly, tmp_path / "deaf"))
    tick_until(local, (tmp_path / "deaf").exists)
    local.cancel(task)
    local.cancel(stubborn)
    local.run(DEADLINE)
    assert (task.state, stubborn.state) == (State.CANCELLED, State.CANCELLED)
    assert stubborn.signal == signal.SIGKILL
    assert grandchild is None or grandchild.wait(DEADLINE)
    if grandchild is not None:
        grandchild.close()


def test_a_task_that_runs_too_long_expires(local):
    task = run(local, Task(stay, expires_in=0.05))
    assert task.state is State.EXPIRED
    with pytest.raises(TaskExpired, match=r"0\.05 s"):
        task.result()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV])
def test_a_process_that_dies_fails_its_task_only(local, number):
    task, other = Task(die, int(number)), Task(divmod, 7, 2)
    run(local, task, other)
    with pytest.raises(WorkerDied) as died:
        task.result()
    assert died.value.signal == number
    assert died.value.pid == task.identity.pid
    assert other.result() == (3, 1)


def test_leaving_the_block_stops_what_runs_and_drops_what_waits(short_path, tmp_path):
    with ProcessManager(f"unix://{short_path}/m", rules=[Rule(processes=1)]) as manager:
        runs = manager.add_task(Task(stay, tmp_path / "up"))
        waits = manager.add_task(Task(stay))
        tick_until(manager, (tmp_path / "up").exists)
        process = runs.identity.open()
    assert (runs.state, waits.state) == (State.CANCELLED, State.CANCELLED)
    assert not process.alive()
    process.close()
    manager.close()
    with pytest.raises(ValueError, match="closed"):
        manager.add_task(Task(stay))


def test_children_end_when_their_manager_is_killed(crossing_location, tmp_path):
    """SIGKILL leaves a manager no time to stop anything."""
    script = f"""
from pathlib import Path
from chores import stay
from doorman import ProcessManager, Task
with ProcessManager({str(crossing_location.url)!r}) as manager:
    for number in range(3):
        manager.add_task(Task(stay, Path({str(tmp_path)!r}) / str(number)))
    manager.add_task(Task.command(["sleep", "1000"]))
    manager.add_task(Task(stay, Path({str(tmp_path)!r}) / "3", wrapper=("env",)))
    manager.run()
"""
    support = str(Path(__file__).parents[1] / "support")
    environment = {**os.environ, "PYTHONPATH": support}
    with subprocess.Popen([sys.executable, "-c", script], env=environment) as owner:
        files = [tmp_path / str(number) for number in range(4)]
        wait_until(lambda: all(file.exists() and file.read_text() for file in files))
        processes = [held(int(file.read_text())) for file in files]
        owner.kill()
    for process in processes:
        assert process is not None
        assert process.wait(DEADLINE), f"process {process.pid} outlives its manager"
        process.close()


# -- policies --------------------------------------------------------------------------------------------------


def test_a_task_that_fails_is_tried_again(local, tmp_path):
    task = run(local, Task(fail_until, tmp_path / "log", 3, retries=2))
    assert task.result() == task.attempt == 3
    assert (tmp_path / "log").read_text() == "tried\n" * 3


def test_retries_end(local, tmp_path):
    task = run(local, Task(fail_until, tmp_path / "log", 9, retries=1))
    with pytest.raises(OSError, match="not yet"):
        task.result()
    assert (tmp_path / "log").read_text() == "tried\n" * 2


def test_rules_hold_back_and_tell_why(local, tmp_path):
    local.add_rule(Rule(processes=1))
    first, second = local.add_task(Task(stay, tmp_path / "1")), local.add_task(Task(stay, tmp_path / "2"))
    tick_until(local, (tmp_path / "1").exists)
    local.tick()
    assert local.running == (first,)
    assert local.waiting == (second,)
    assert local.why(second) == "1 of 1 processes run"
    third = local.add_task(Task(divmod, 1, 1, ignores_rules=True))
    assert third.result(DEADLINE) == (1, 0)
    assert local.waiting == (second,)
    assert local.remove_rule(Rule(processes=1))
    tick_until(local, (tmp_path / "2").exists)
    assert local.why(second) is None


def test_no_more_processes_at_once_than_a_rule_says(local):
    local.add_rule(Rule(processes=3))
    tasks = [local.add_task(Task(divmod, number, 7)) for number in range(20)]
    most = 0
    while local.tick():
        most = max(most, len(local.running))
        local.wait(1.0)
    assert most == 3
    assert [task.result() for task in tasks] == [divmod(number, 7) for number in range(20)]


def test_a_task_stops_its_siblings(local, tmp_path):
    old = local.add_task(Task(stay, tmp_path / "old"))
    stranger = local.add_task(Task(stay, tmp_path / "stranger", handler="another"))
    tick_until(local, lambda: (tmp_path / "old").exists() and (tmp_path / "stranger").exists())
    new = local.add_task(Task(stay, tmp_path / "new", stops_siblings=True))
    tick_until(local, lambda: old.done() and (tmp_path / "new").exists())
    assert old.state is State.CANCELLED
    assert (new.state, stranger.state) == (State.RUNNING, State.RUNNING)


def test_can_run_and_cancel_when_are_asked(local, tmp_path):
    open_door, leave = threading.Event(), threading.Event()
    task = local.add_task(Task(stay, tmp_path / "up", can_run=open_door.is_set, cancel_when=leave.is_set))
    local.run(0.1)
    assert local.waiting == (task,)
    assert local.why(task) == "its can_run says no"
    threading.Timer(0.1, open_door.set).start()  # nobody tells the manager
    tick_until(local, (tmp_path / "up").exists)
    leave.set()
    local.run(DEADLINE)
    assert task.state is State.CANCELLED


@pytest.mark.parametrize("question", ["can_run", "cancel_when"])
def test_a_question_that_raises_fails_its_task_only(local, question):
    def broken() -> bool:
        raise LookupError("no answer")

    task, other = Task(stay, **{question: broken}), Task(divmod, 7, 2)
    run(local, task, other)
    with pytest.raises(LookupError, match="no answer"):
        task.result()
    assert other.result() == (3, 1)


# -- the caller's mistakes -------------------------------------------------------------------------------------


def test_a_task_runs_once(local):
    task = run(local, Task(divmod, 1, 1))
    with pytest.raises(TaskAlreadyAdded, match="make a new task"):
        local.add_task(task)


def test_result_waits_no_longer_than_told(local):
    task = local.add_task(Task(stay))
    with pytest.raises(ResultTimeout, match=r"0\.05 s"):
        task.result(timeout=0.05)


def test_another_thread_may_not_wait_for_a_task(local):
    task = local.add_task(Task(divmod, 1, 1))
    errors: list[BaseException] = []

    def wait() -> None:
        try:
            task.result()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join(DEADLINE)
    assert "only the thread that owns the manager" in str(errors[0])


def test_a_listener_may_not_tick_its_manager(local):
    raised: list[str] = []

    def tick(_child: int, _number: int) -> None:
        try:
            local.tick()
        except ReentrantTick as error:
            raised.append(str(error))

    local.server.add_listener("count", tick)
    run(local, Task(count, 0, 1))
    assert len(raised) == 1


def test_a_location_that_no_other_process_reaches_is_refused():
    with pytest.raises(ValueError, match="does not reach other processes"):
        ProcessManager("memory://nobody")


def test_a_program_that_is_not_there_is_told(short_path):
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path / "log") as manager:
        task = run(manager, Task.command(["no-such-program-here"]))
        with pytest.raises(WorkerDied, match="exit code 127"):
            task.result()
        assert "cannot run no-such-program-here" in task.output[1].read_text()


def test_a_folder_that_is_not_there_is_told(local, tmp_path):
    task = run(local, Task(divmod, 1, 1, cwd=tmp_path / "nowhere"))
    with pytest.raises(WorkerDied, match="working directory does not exist"):
        task.result()
