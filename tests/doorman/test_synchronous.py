"""Synchronous: tasks in this very process."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest
from managing import run
from waiting import DEADLINE

from doorman import State, SynchronousManager, Task, current_task
from remit.errors import ReentrantTick


@pytest.fixture
def manager() -> Iterator[SynchronousManager]:
    with SynchronousManager() as manager:
        yield manager


def test_tasks_run_in_order_in_this_process(manager):
    tasks = [manager.add_task(Task(os.getpid)) for _ in range(3)]
    order: list[str] = []
    for name in "abc":
        manager.add_task(Task(lambda: order.append(current_task().name), name=name))
    assert not manager.tick()
    assert [task.result() for task in tasks] == [os.getpid()] * 3
    assert [task.identity.pid for task in tasks] == [os.getpid()] * 3
    assert order == ["a", "b", "c"]


def test_a_task_sees_itself_running_and_the_others_waiting(manager):
    seen: list[tuple[object, object]] = []
    tasks = [manager.add_task(Task(lambda: seen.append((manager.running, manager.waiting)))) for _ in range(2)]
    manager.run()
    assert seen == [((tasks[0],), (tasks[1],)), ((tasks[1],), ())]
    assert manager.running == ()


def test_a_task_cannot_tick_its_manager(manager):
    task = manager.add_task(Task(manager.tick))
    waits = manager.add_task(Task(len, "abc"))
    asks = manager.add_task(Task(lambda: manager.add_task(Task(len, "ab")).result()))
    manager.run()
    for refused in (task, asks):
        with pytest.raises(ReentrantTick, match="let it return"):
            refused.result()
    assert waits.result() == 3


def test_the_result_of_what_runs_cannot_be_waited_for_nor_can_it_be_cancelled(manager):
    task = manager.add_task(Task(lambda: (manager.cancel(manager.running[0]), manager.running[0].result())))
    manager.run()
    with pytest.raises(ReentrantTick):
        task.result()


def test_output_is_that_of_this_process(manager, capfd):
    run(manager, Task.command(["echo", "from a command"])).result()
    run(manager, Task(sys.exit, "from leaving"))
    assert capfd.readouterr() == ("from a command\n", "from leaving\n")


def test_an_interrupt_is_the_callers_own_and_leaves_the_rest_to_be_run(manager):
    def interrupt() -> None:
        raise KeyboardInterrupt

    interrupted = manager.add_task(Task(interrupt, retries=3))
    after = manager.add_task(Task(len, "abc"))
    with pytest.raises(KeyboardInterrupt):
        manager.run()
    assert interrupted.state is State.CANCELLED
    assert after.result() == 3


def test_a_task_that_fails_is_tried_again_after_the_others(manager):
    order: list[str] = []

    def fail_once() -> None:
        order.append(f"{current_task().name}{current_task().attempt}")
        assert current_task().attempt == 2

    manager.add_task(Task(fail_once, name="a", retries=1))
    manager.add_task(Task(fail_once, name="b", retries=1))
    manager.run()
    assert order == ["a1", "b1", "a2", "b2"]


def write(words):
    print("printed", words)
    os.write(1, b"past Python\n")
    os.system("echo from a child; echo to the other >&2")
    print("unfinished", end="")
    print("oops", file=sys.stderr)
    return words


WRITTEN = [
    ("stdout", "printed a b"),
    ("stdout", "past Python"),
    ("stdout", "from a child"),
    ("stdout", "unfinished"),
    ("stderr", "to the other"),
    ("stderr", "oops"),
]


def test_what_a_task_writes_is_told_before_its_end(capfd):
    """Whatever wrote it; and nothing of it goes where this process writes."""
    heard = []
    with SynchronousManager(on_output=lambda task, stream, line: heard.append((task.done(), stream, line))) as manager:
        task = manager.add_task(Task(write, "a b"))
        command = manager.add_task(Task.command(["sh", "-c", "echo one; echo two >&2; exit 3"]))
        silent = manager.add_task(Task(print, "as ever", stream=False))
        manager.run()
        print("and after it")
        assert task.result() == "a b"
        assert heard == [(False, *each) for each in [*WRITTEN, ("stdout", "one"), ("stderr", "two")]]
        assert list(task.lines) == WRITTEN
        assert list(command.lines) == [("stdout", "one"), ("stderr", "two")]
        assert (command.exit_code, list(silent.lines)) == (3, [])
    assert capfd.readouterr() == ("as ever\nand after it\n", "")


@pytest.mark.parametrize("end", ["raise ValueError('no')", "import sys; sys.exit(3)", "import sys; sys.stdout.close()"])
def test_what_was_written_before_a_bad_end_is_told_and_the_streams_come_back(manager, capfd, end):
    task = manager.add_task(Task(exec, f"print('last words'); {end}", stream=True))
    manager.run()
    print("still here")
    assert list(task.lines) == [("stdout", "last words")]
    assert capfd.readouterr() == ("still here\n", "")


def test_a_listener_that_raises_stops_nothing_here_either(manager, caplog):
    def fails(task, stream, line):
        raise ValueError(line)

    task = manager.add_task(Task(print, "hello", on_output=fails))
    assert task.result() is None
    assert "ValueError: hello" in caplog.text


def test_a_process_without_standard_output_streams_as_well(tmp_path):
    """As a daemon may be."""
    script = tmp_path / "closed.py"
    script.write_text(
        "import os, sys\n"
        "os.close(1)\n"
        "sys.stdout = None\n"
        "from doorman import SynchronousManager, Task\n"
        "with SynchronousManager() as manager:\n"
        "    task = manager.add_task(Task(print, 'hello', stream=True))\n"
        "    task.result()\n"
        "    print(list(task.lines), sys.stdout, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.returncode, done.stderr) == (0, "[Line(stream='stdout', text='hello')] None\n")
