"""Logs: each task's output in files of its own, also that of a task that crashes."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE

from doorman import ProcessManager, Task
from doorman._scheduler.output import Logs, Outputs
from doorman.errors import WorkerDied


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path / "logs") as manager:
        yield manager


def written(task: Task) -> tuple[str, str]:
    return task.output[0].read_text(), task.output[1].read_text()


def test_output_and_errors_go_to_two_files(manager, speak):
    task = manager.add_task(Task(speak, "one"))
    task.result(DEADLINE)
    assert written(task) == ("one out\n", "one err\n")
    assert [path.suffix for path in task.output] == [".out", ".err"]


def test_tasks_of_one_name_do_not_write_over_each_other(manager, speak):
    tasks = [manager.add_task(Task(speak, word, name="same")) for word in ("one", "two", "three")]
    manager.run(DEADLINE)
    assert [written(task)[0] for task in tasks] == ["one out\n", "two out\n", "three out\n"]


def test_a_second_manager_does_not_write_over_the_files_of_the_first(short_path, speak):
    for word in ("first", "second"):
        with ProcessManager(f"unix://{short_path}/{word}", log_path=short_path / "logs") as manager:
            manager.add_task(Task(speak, word, name="same")).result(DEADLINE)
    texts = {path.read_text() for path in (short_path / "logs").glob("*.out")}
    assert texts == {"first out\n", "second out\n"}


def test_what_a_task_wrote_before_it_was_killed_is_there(manager, speak):
    def crash() -> None:
        speak("last")
        os.kill(os.getpid(), signal.SIGKILL)

    task = manager.add_task(Task(crash))
    with pytest.raises(WorkerDied):
        task.result(DEADLINE)
    assert written(task) == ("last out\n", "last err\n")


def test_what_a_task_wrote_without_an_end_of_line_is_there(manager):
    task = manager.add_task(Task(lambda: sys.stdout.write("no end")))
    assert task.result(DEADLINE) == len("no end")
    assert written(task)[0] == "no end"


def test_what_the_children_of_a_task_write_is_kept_with_it(manager):
    task = manager.add_task(Task(os.system, "echo from a shell; echo its error >&2"))
    assert task.result(DEADLINE) == 0
    assert written(task) == ("from a shell\n", "its error\n")


def test_each_attempt_has_files_of_its_own_and_the_task_names_the_last(manager, short_path):
    def speak_and_fail() -> None:
        from doorman import current_task

        print("attempt", current_task().attempt)
        assert current_task().attempt == 2

    task = manager.add_task(Task(speak_and_fail, retries=1))
    task.result(DEADLINE)
    assert written(task)[0] == "attempt 2\n"
    assert sorted(path.read_text() for path in (short_path / "logs").glob("*.out")) == ["attempt 1\n", "attempt 2\n"]


def test_the_output_of_a_command_is_kept(manager):
    task = manager.add_task(Task.command(["sh", "-c", "echo said; echo complained >&2"]))
    task.result(DEADLINE)
    assert written(task) == ("said\n", "complained\n")


def test_a_name_that_is_no_file_name_stays_within_the_folder(manager, short_path, speak):
    task = manager.add_task(Task(speak, "one", name="../../etc/passwd \0 " + "long" * 100))
    task.result(DEADLINE)
    assert task.output[0].parent == short_path / "logs"
    assert written(task)[0] == "one out\n"


def test_a_folder_that_cannot_be_written_fails_the_task_and_names_it(manager, short_path, speak):
    (short_path / "logs").rmdir()
    (short_path / "logs").write_text("a file now")
    with pytest.raises(OSError, match="logs"):
        manager.add_task(Task(speak, "one")).result(DEADLINE)


def test_tasks_that_cannot_have_a_file_wait_until_they_can(manager, speak, monkeypatch):
    real = Logs.open
    failures = iter(range(3))

    def opened(self: Logs, name: str, attempt: str) -> Outputs:
        if next(failures, None) is not None:
            raise OSError(24, "Too many open files")
        return real(self, name, attempt)

    monkeypatch.setattr(Logs, "open", opened)
    manager.add_task(Task(speak, "one")).result(DEADLINE)
    assert next(failures, None) is None


def test_without_a_folder_tasks_share_the_output_of_the_manager(short_path, capfd, speak):
    with ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task(speak, "shared"))
        task.result(DEADLINE)
    assert task.output is None
    assert capfd.readouterr() == ("shared out\n", "shared err\n")
    assert Logs(None).open("any", "1") == Outputs(None, None)


def test_a_relative_folder_means_the_one_of_the_moment(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    logs = Logs("logs")
    monkeypatch.chdir("/")
    outputs = logs.open("task", "1.1")
    outputs.close()
    assert sorted(path.name for path in (tmp_path / "logs").iterdir()) == ["task-1.1.err", "task-1.1.out"]


def test_a_folder_is_made_with_its_parents(tmp_path):
    Logs(tmp_path / "a" / "b")
    assert Path(tmp_path / "a" / "b").is_dir()


@pytest.mark.parametrize("unbuffered", ["", "1"])
@pytest.mark.parametrize("wrapper", [(), ("env",)], ids=["forked", "wrapped"])
def test_all_tasks_may_share_two_files_whose_lines_are_whole(short_path, monkeypatch, unbuffered, wrapper):
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)

    def write(word: str) -> None:
        for _ in range(500):
            print(word * 300)

    with ProcessManager(f"unix://{short_path}/m", log_path=short_path / "logs", shared_log=True) as manager:
        tasks = [manager.add_task(Task(write, word, wrapper=wrapper)) for word in "abcd"]
        manager.run(DEADLINE)
    shared = short_path / "logs" / "stdout.log", short_path / "logs" / "stderr.log"
    assert {task.output for task in tasks} == {shared}
    lines = shared[0].read_text().splitlines()
    assert sorted(lines) == sorted(word * 300 for word in "abcd" for _ in range(500))
    assert shared[1].read_text() == ""


def test_shared_files_may_be_rotated_by_copying_and_truncating(short_path):
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path, shared_log=True) as manager:
        command = f"echo before; : > {short_path}/stdout.log; echo after"
        manager.add_task(Task.command(["sh", "-c", command])).result(DEADLINE)
    assert (short_path / "stdout.log").read_text() == "after\n"


def test_what_is_streamed_into_shared_files_comes_in_whole_lines(short_path):
    write = "import os, time\nfor _ in range(200): os.write(1, b'%s' * 50); time.sleep(0.0001); os.write(1, b'%s\\n')"
    where = f"unix://{short_path}/m"
    with ProcessManager(where, log_path=short_path, shared_log=True, on_output=lambda *_: None) as manager:
        for word in "ab":
            manager.add_task(Task.command([sys.executable, "-c", write % (word, word)]))
        manager.run(DEADLINE)
    lines = (short_path / "stdout.log").read_text().splitlines()
    assert sorted(lines) == ["a" * 51] * 200 + ["b" * 51] * 200


@pytest.mark.parametrize("wrapper", [(), ("env",)], ids=["forked", "wrapped"])
def test_a_line_is_written_at_once_and_by_itself(short_path, monkeypatch, wrapper):
    monkeypatch.setenv("PYTHONUNBUFFERED", "1")

    def buffering() -> tuple[bool, bool]:
        return sys.stdout.line_buffering, sys.stdout.write_through

    with ProcessManager(f"unix://{short_path}/m", log_path=short_path) as manager:
        assert manager.add_task(Task(buffering, wrapper=wrapper)).result(DEADLINE) == (True, False)


def test_shared_files_need_a_folder():
    with pytest.raises(ValueError, match="log_path"):
        Logs(None, shared=True)
