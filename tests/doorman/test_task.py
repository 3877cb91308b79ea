"""Task: what can be wanted, what is refused at once, and how it travels to its process."""

from __future__ import annotations

import functools
import os
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE

from doorman import ProcessManager, State, Task, current_task
from doorman.errors import NotInTask, TaskAlreadyAdded, TaskNotPicklable, WorkerDied


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/m") as manager:
        yield manager


def result(manager: ProcessManager, task: Task) -> object:
    return manager.add_task(task).result(DEADLINE)


def ran(folder: Path, words: list[str]) -> str:
    """Run an interpreter of its own and return what it says."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env=dict(os.environ, PYTHONPATH=os.pathsep.join(filter(None, sys.path))),
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def script(folder: Path, text: str, argument: object) -> str:
    """Run a program of its own and return what it says."""
    path = folder / "program.py"
    path.write_text(textwrap.dedent(text))
    return ran(folder, [str(path), str(argument)])


# -- making one ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["can_run", "cancel_when"])
def test_a_condition_is_a_plain_function(name):
    async def later() -> bool:
        return False  # never asked: the coroutine would count as True

    with pytest.raises(TypeError, match=f"{name} is called, but 'no function' cannot be"):
        Task(print, **{name: "no function"})
    with pytest.raises(TypeError, match=f"{name} is called in a tick, so it must be a plain function"):
        Task(print, **{name: later})


def test_a_new_task_waits_and_has_no_process():
    task = Task(len, "abc")
    assert task.state is State.WAITING
    assert task.identity is None
    assert task.attempt == 0
    assert task.duration is None
    assert not task.done()
    assert not task.cancel()


@pytest.mark.parametrize(
    ("arguments", "policy", "error", "says"),
    [
        (["ls"], {}, TypeError, "Task.command"),
        ([print], {"expires_in": 0}, ValueError, "expires_in"),
        ([print], {"expires_in": -1.0}, ValueError, "expires_in"),
        ([print], {"expires_in": float("nan")}, ValueError, "expires_in"),
        ([print], {"retries": -1}, ValueError, "retries"),
        ([print], {"can_run": True}, TypeError, "can_run"),
        ([print], {"cancel_when": "never"}, TypeError, "cancel_when"),
        ([print], {"wrapper": "nice -n 10"}, TypeError, "a wrapper is a sequence of strings"),
        ([print], {"wrapper": ["nice", "-n", 10]}, TypeError, "a wrapper is a sequence of strings"),
        ([print], {"env": {"WIDTH": 80}}, TypeError, "WIDTH"),
        ([print], {"cwd": 3}, TypeError, "int"),
        ([print], {"size": 3}, TypeError, "size"),
    ],
)
def test_a_policy_that_makes_no_sense_is_refused_at_once(arguments, policy, error, says):
    with pytest.raises(error, match=says):
        Task(*arguments, **policy)


@pytest.mark.parametrize("argv", ["ls -l", b"ls", [], ["sleep", 3], None])
def test_a_command_that_is_no_sequence_of_strings_is_refused_at_once(argv):
    with pytest.raises(TypeError, match="a command is a sequence of strings"):
        Task.command(argv)


def test_a_task_is_named_after_its_callable():
    assert Task(os.getpid).name == "getpid"
    assert Task(functools.partial(functools.partial(os.path.join, "a"), "b")).name == "join"
    assert Task(functools.partial(print), name="mine").name == "mine"
    assert Task.command(["/usr/bin/env", "true"]).name == "env"


def test_tasks_are_siblings_by_their_callable_unless_told_otherwise():
    assert Task(textwrap.dedent, "a").handler == Task(textwrap.dedent, "b").handler == "textwrap.dedent"
    assert Task(Path.exists).handler != Task(Path.is_dir).handler
    assert Task(functools.partial(textwrap.dedent, "a")).handler == "textwrap.dedent"
    assert Task(print, handler="shouting").handler == "shouting"
    assert Task.command(["/bin/true"]).handler == "true"


def test_what_a_task_tells_of_itself_names_it_and_its_state():
    assert "'resize' waiting" in repr(Task(print, name="resize"))


# -- adding it -------------------------------------------------------------------------------------------------


def test_a_task_can_be_added_only_once(manager):
    task = manager.add_task(Task(len, "abc"))
    with pytest.raises(TaskAlreadyAdded, match="'len'"):
        manager.add_task(task)
    assert task.result(DEADLINE) == 3
    with pytest.raises(TaskAlreadyAdded, match="make a new task"):
        manager.add_task(task)


@pytest.mark.parametrize(
    ("arguments", "keywords", "culprit"),
    [
        ([1, threading.Lock()], {}, "argument 2 <unlocked"),
        ([1], {"lock": threading.Lock()}, "argument lock= <unlocked"),
    ],
)
def test_an_argument_that_cannot_travel_is_named(manager, arguments, keywords, culprit):
    with pytest.raises(TaskNotPicklable, match=culprit):
        manager.add_task(Task(print, *arguments, kwargs=keywords))
    assert not manager.busy


def test_a_culprit_that_cannot_even_be_shown_is_named_and_a_long_one_is_cut(manager):
    class Unshowable:
        def __init__(self) -> None:
            self.lock = threading.Lock()

        def __repr__(self) -> str:
            raise ValueError("not to be shown")

    with pytest.raises(TaskNotPicklable, match="argument 1 <Unshowable instance"):
        manager.add_task(Task(print, Unshowable()))
    with pytest.raises(TaskNotPicklable) as raised:
        manager.add_task(Task(print, [threading.Lock()] * 10_000))
    assert len(str(raised.value)) < 1000


def test_a_callable_that_cannot_travel_is_named(manager):
    lock = threading.Lock()

    def hold() -> None:
        lock.acquire()

    with pytest.raises(TaskNotPicklable, match=r"its callable .*hold"):
        manager.add_task(Task(hold))


def test_arguments_are_those_of_the_moment_when_the_task_is_added(manager):
    numbers = [1, 2]
    task = manager.add_task(Task(sum, numbers))
    numbers.append(100)
    assert task.result(DEADLINE) == 3


# -- what its process finds ------------------------------------------------------------------------------------


def test_arguments_and_keyword_arguments_arrive(manager):
    assert result(manager, Task(sorted, [1, 3, 2], kwargs={"reverse": True})) == [3, 2, 1]


def test_a_closure_and_a_bound_method_arrive(manager):
    factor = 6
    assert result(manager, Task(lambda number: number * factor, 7)) == 42
    assert result(manager, Task("a,b".split, ",")) == ["a", "b"]


def test_the_environment_is_the_one_given_and_nothing_else(manager):
    assert result(manager, Task(lambda: dict(os.environ), env={"WORD": "said"})) == {"WORD": "said"}


def test_the_environment_is_that_in_which_the_manager_was_made_by_default(short_path, monkeypatch):
    monkeypatch.setenv("WORD", "before")
    with ProcessManager(f"unix://{short_path}/m") as manager:
        monkeypatch.setenv("WORD", "after")
        found = result(manager, Task(lambda: dict(os.environ)))
    assert found["WORD"] == "before"
    assert found["PATH"] == os.environ["PATH"]


def test_the_working_directory_is_the_one_given(manager, tmp_path):
    assert result(manager, Task(os.getcwd, cwd=tmp_path)) == str(tmp_path)
    assert result(manager, Task(os.getcwd)) == str(Path.cwd())


def test_a_relative_working_directory_means_the_one_of_the_moment(manager, tmp_path, monkeypatch):
    (tmp_path / "inner").mkdir()
    monkeypatch.chdir(tmp_path)
    task = manager.add_task(Task(os.getcwd, cwd="inner"))
    monkeypatch.chdir("/")
    assert task.result(DEADLINE) == str(tmp_path / "inner")


def test_a_working_directory_that_does_not_exist_fails_the_task_and_is_named(manager, tmp_path):
    with pytest.raises(WorkerDied, match="nowhere"):
        result(manager, Task(os.getcwd, cwd=tmp_path / "nowhere"))


def test_each_task_has_a_process_of_its_own_that_leads_a_group(manager):
    tasks = [manager.add_task(Task(lambda: (os.getpid(), os.getpgrp()))) for _ in range(3)]
    seen = [task.result(DEADLINE) for task in tasks]
    assert seen == [(task.identity.pid, task.identity.pid) for task in tasks]
    assert len({pid for pid, _ in seen} | {os.getpid()}) == 4


def test_a_task_knows_itself(manager):
    def who() -> tuple[str, int]:
        return current_task().name, current_task().attempt

    assert result(manager, Task(who, name="me")) == ("me", 1)
    with pytest.raises(NotInTask):
        current_task()


def test_a_module_is_found_through_sys_path(short_path, tmp_path, monkeypatch):
    (tmp_path / "found_by_path.py").write_text("def answer(): return __name__\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    import found_by_path

    with ProcessManager(f"unix://{short_path}/m") as manager:
        assert result(manager, Task(found_by_path.answer)) == "found_by_path"
    sys.modules.pop("found_by_path")


# -- programs --------------------------------------------------------------------------------------------------

MAIN = """
    import sys
    from doorman import ProcessManager, Task

    class Point:
        def __init__(self, x): self.x = x

    class Broken(Exception):
        pass

    def double(point):
        return Point(point.x * FACTOR)

    def fail():
        raise Broken("on purpose")

    FACTOR = 2

    if __name__ == "__main__":
        with ProcessManager(f"unix://{sys.argv[1]}/m") as manager:
            point = manager.add_task(Task(double, Point(21), **POLICY)).result(20)
            assert isinstance(point, Point)
            print(point.x)
            try:
                manager.add_task(Task(fail, **POLICY)).result(20)
            except Broken as error:
                print(error)
"""


@pytest.mark.parametrize("policy", [{}, {"wrapper": ("nice", "-n", "5")}])
def test_functions_and_classes_of_main_work_in_fresh_processes(short_path, tmp_path, policy):
    assert script(tmp_path, MAIN.replace("**POLICY", f"**{policy}"), short_path) == "42\non purpose\n"


def test_modules_beside_the_program_are_found(short_path, tmp_path):
    (tmp_path / "beside.py").write_text("def answer(): return 'beside'\n")
    text = """
        import sys
        import beside
        from doorman import ProcessManager, Task

        with ProcessManager(f"unix://{sys.argv[1]}/m") as manager:
            print(manager.add_task(Task(beside.answer)).result(20))
            print(manager.add_task(Task(beside.answer, wrapper=["env"])).result(20))
    """
    assert script(tmp_path, text, short_path) == "beside\nbeside\n"


@pytest.mark.parametrize("launcher", ["ZygoteLauncher(entry='doorman._worker.main:prepare:unix')", "CommandLauncher()"])
def test_modules_in_the_working_directory_are_found_by_a_program_read_from_a_text(short_path, tmp_path, launcher):
    """Its ``sys.path`` begins with ``""``, which in a task that starts elsewhere would mean another folder."""
    (tmp_path / "nearby.py").write_text("def answer(): return 'nearby'\n")
    text = f"""
        import nearby, sys
        from doorman import ProcessManager, Task
        from doorman.launcher.command import CommandLauncher
        from doorman.launcher.zygote import ZygoteLauncher
        with ProcessManager(f"unix://{{sys.argv[1]}}/m", launcher={launcher}) as manager:
            for policy in ({{}}, {{"cwd": "/"}}, {{"wrapper": ["env"], "cwd": "/"}}):
                print(manager.add_task(Task(nearby.answer, **policy)).result(20))
    """
    assert ran(tmp_path, ["-c", textwrap.dedent(text), str(short_path)]) == "nearby\n" * 3


# -- what is refused at once -------------------------------------------------------------------------------------


async def later() -> None: ...


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (lambda: Task(later), TypeError, "asyncio.run"),
        (lambda: Task(functools.partial(later, 1)), TypeError, "asyncio.run"),
        (lambda: Task(abs, retries="3"), TypeError, "retries must be a whole number, not '3'"),
        (lambda: Task(abs, retries=True), TypeError, "retries must be a whole number"),
        (lambda: Task(abs, priority=1.5), TypeError, "priority must be a whole number"),
        (lambda: Task(abs, expires_in="3"), TypeError, "expires_in must be a number of seconds"),
        (lambda: Task(abs, expires_in=float("nan")), ValueError, "finite and greater than 0"),
        (lambda: Task(abs, name=b"x"), TypeError, "name is a string"),
        (lambda: Task(abs, handler=abs), TypeError, "handler is a string"),
        (lambda: Task(abs, kwargs=[("x", 1)]), TypeError, "kwargs maps names"),
        (lambda: Task(abs, kwargs={1: 1}), TypeError, "kwargs maps names"),
        (lambda: Task.command(["echo", "a\0b"]), ValueError, r"NUL: 'a\\x00b'"),
        (lambda: Task.command(["a\0" + "x" * 100_000]), ValueError, "NUL: .{1,60}$"),
        (lambda: Task(abs, wrapper=["nice\0"]), ValueError, "wrapper cannot contain the character NUL"),
        (lambda: Task(abs, cwd="/tmp\0"), ValueError, "working directory cannot contain the character NUL"),
        (lambda: Task(abs, env={"A": "\0"}), ValueError, "environment of a process cannot contain"),
        (lambda: Task(abs, env={"A=B": "c"}), ValueError, "a name without '=', not 'A=B'"),
        (lambda: Task(abs, env={"": "c"}), ValueError, "a name without '=', not ''"),
    ],
)
def test_what_no_process_could_use_is_refused_when_the_task_is_made(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_an_open_file_is_refused_as_an_argument(manager, tmp_path):
    path = tmp_path / "data"
    path.write_text("text")
    with path.open() as file, path.open("rb") as binary:
        for argument in (file, binary, [file], {"file": file}):
            with pytest.raises(TaskNotPicklable, match="argument 1"):
                manager.add_task(Task(print, argument))


def test_a_coroutine_that_a_task_returns_is_refused_with_a_hint(manager):
    with pytest.raises(TypeError, match=r"asyncio.run"):
        result(manager, Task(lambda: later()))


def test_a_result_is_waited_for_in_the_thread_that_ticks(manager):
    task, found = manager.add_task(Task(abs, -2)), []

    def tick() -> None:
        manager.tick()
        found.append(task.result(DEADLINE))

    thread = threading.Thread(target=tick)
    thread.start()
    thread.join()
    assert found == [2]
    waiting = manager.add_task(Task(abs, -3))
    with pytest.raises(RuntimeError, match=r"task\.future"):
        waiting.result(DEADLINE)
    manager.run(DEADLINE)
    assert waiting.result(DEADLINE) == 3
