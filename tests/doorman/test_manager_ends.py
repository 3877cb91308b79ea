"""Manager: how tasks end, and managers, and what a caller may not do."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from chores import count, die, stay, stay_stubbornly, stay_with_child
from internals import deadlines_kept
from managing import run, tick_until
from waiting import DEADLINE, wait_until

from doorman import Backoff, ProcessManager, Rule, State, Task
from doorman.errors import ResultTimeout, TaskAlreadyAdded, TaskExpired, WorkerDied
from doorman.process import Process
from remit.errors import ReentrantTick


def held(pid: int) -> Process | None:
    """Hold a process that may have ended already."""
    try:
        return Process.open(pid)
    except ProcessLookupError:
        return None


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


def test_children_end_when_their_manager_is_killed(short_path, tmp_path):
    """SIGKILL leaves a manager no time to stop anything: the kernel ends them, over whichever transport."""
    script = f"""
from pathlib import Path
from chores import stay
from doorman import ProcessManager, Task
with ProcessManager("unix://{short_path}/m") as manager:
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
        with pytest.raises(WorkerDied, match="cannot run no-such-program-here: No such file"):
            task.result()
        assert "cannot run no-such-program-here" in task.output[1].read_text()


def test_a_folder_that_is_not_there_is_told(local, tmp_path):
    task = run(local, Task(divmod, 1, 1, cwd=tmp_path / "nowhere"))
    with pytest.raises(WorkerDied, match="working directory does not exist"):
        task.result()


def test_names_that_are_no_text_are_those_of_one_task_only(local, tmp_path):
    program = tmp_path / os.fsdecode(b"\xff")
    program.symlink_to("/bin/true")
    command, named = Task.command([program]), Task(pow, 2, 3, name="\udcff")
    wrapped, other = Task(pow, 2, 3, wrapper=("env", "A=\udcff")), Task(divmod, 7, 2)
    run(local, command, named, wrapped, other)
    assert (command.result(), named.result(), other.result()) == (0, 8, (3, 1))
    with pytest.raises(ValueError, match="surrogates"):
        wrapped.result()


def linger(result: int) -> int:
    threading.Thread(target=threading.Event().wait).start()
    return result


def test_what_runs_on_behind_its_result_ends_when_its_time_and_the_grace_are_over(short_path):
    with ProcessManager(f"unix://{short_path}/m", grace=0.2) as manager:
        task = run(manager, Task(linger, 7, expires_in=2.0))
        assert (task.state, task.result(), task.signal) == (State.DONE, 7, signal.SIGTERM)


def test_tasks_that_have_ended_leave_nothing_due(local, monkeypatch):
    monkeypatch.setattr("remit._protocol.deadlines.SPARE_ENTRIES", 8)
    run(local, *(Task(pow, 2, 3, expires_in=1000.0) for _ in range(20)))
    assert deadlines_kept(local) <= 8


def test_tasks_that_are_cancelled_while_they_rest_leave_nothing_behind(local, monkeypatch):
    monkeypatch.setattr("remit._protocol.deadlines.SPARE_ENTRIES", 8)
    tasks = [local.add_task(Task(int, "no number", retries=1, backoff=Backoff(first=30.0))) for _ in range(20)]
    tick_until(local, lambda: all(task.attempt == 1 and task.state is State.WAITING for task in tasks))
    for task in tasks:
        task.cancel()
    assert deadlines_kept(local) <= 8
