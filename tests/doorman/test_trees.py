"""A process tree gets its grace period as a whole: each descendant is asked to end once, and may take its time."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
from managing import tick_until
from waiting import DEADLINE, wait_until

from doorman import Crew, ProcessExecutor, ProcessManager, State, Task
from doorman.launcher.command import CommandLauncher
from doorman.process import Process

APP = """
import os, pathlib, signal, subprocess, sys, time
folder, manner = pathlib.Path(sys.argv[1]), sys.argv[2]
def end():
    with open(folder / "asked", "a") as file:
        file.write("!")
    if manner == "stubborn":
        return
    if manner == "forks":
        subprocess.Popen(["sh", "-c", 'sleep 0.2; touch "$0"', folder / "clean"], start_new_session=True)
        os._exit(0)
    time.sleep(0.2)
    (folder / "clean").touch()
    sys.exit()
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
(folder / "part").write_text(str(os.getpid()))
(folder / "part").rename(folder / "up")
while True:
    signal.sigwait([signal.SIGTERM])
    end()
"""
SHAPES = {
    "alone": "exec APP",
    "and": "cd / && APP; true",
    "pipe": "APP | cat",
    "subshell": "(cd / ; APP); exit 3",
    "three levels": "sh -c 'sh -c \"APP; true\"; true'; true",
    "session": "setsid APP; true",
    "session of three levels": "setsid sh -c 'setsid sh -c \"APP; true\"; true'; true",
    "background": "nohup APP >/dev/null 2>&1 & wait",
    "daemon": "(setsid APP &); sleep 1000; true",
    "shell that ends by itself": "trap 'exit 0' TERM; APP & wait; wait",
    "shell that waits": "trap '' TERM; APP; true",
    "timeout": "timeout 1000 APP; true",
}


@pytest.fixture
def app(tmp_path) -> str:
    """The words of a shell that start a program which needs a while to end."""
    (tmp_path / "app.py").write_text(APP)
    return f"{shlex.quote(sys.executable)} -IS {tmp_path}/app.py {tmp_path} willing"


def shape(name: str, app: str) -> list[str]:
    return ["bash", "-c", SHAPES[name].replace("APP", app)]


def call(words: str, **options: object) -> None:
    """Be a task that waits for a program."""
    subprocess.call(["bash", "-c", words], **options)


def cancelled(manager: ProcessManager, task: Task, folder: Path) -> None:
    """Cancel a task whose program is up, and check that the program was asked once and has ended by itself."""
    manager.add_task(task)
    tick_until(manager, (folder / "up").exists)
    with Process.open(int((folder / "up").read_text())) as program:
        task.cancel()
        manager.run(DEADLINE)
        assert task.state is State.CANCELLED
        assert (folder / "clean").exists()
        assert (folder / "asked").read_text() == "!"
        assert program.wait(DEADLINE)


@pytest.mark.parametrize("name", SHAPES)
def test_a_program_behind_a_shell_ends_by_itself(local, tmp_path, app, name):
    cancelled(local, Task.command(shape(name, app)), tmp_path)


@pytest.mark.parametrize("options", [{}, {"start_new_session": True}], ids=["group", "session"])
def test_a_program_of_a_callable_ends_by_itself(local, tmp_path, app, options):
    cancelled(local, Task(partial(call, **options), f"{app}; true"), tmp_path)


@pytest.mark.parametrize(
    ("wrapper", "name"),
    [(("nice",), "session"), (("sh", "-c", '"$@"; true', "sh"), "pipe"), (("timeout", "1000"), "and")],
    ids=["nice", "sh", "timeout"],
)
def test_a_program_behind_a_wrapper_ends_by_itself(local, tmp_path, app, wrapper, name):
    cancelled(local, Task.command(shape(name, app), wrapper=wrapper), tmp_path)


@pytest.mark.parametrize("name", ["and", "pipe", "three levels"])
def test_a_program_of_a_command_launcher_ends_by_itself(short_path, tmp_path, app, name):
    with ProcessManager(f"unix://{short_path}/m", launcher=CommandLauncher()) as manager:
        cancelled(manager, Task.command(shape(name, app)), tmp_path)


@pytest.mark.parametrize("name", ["and", "daemon"])
def test_an_adopted_program_ends_by_itself(short_path, tmp_path, app, name):
    journal, place = tmp_path / "journal", f"unix://{short_path}/m"
    with ProcessManager(place, journal=journal) as manager:
        manager.add_task(Task.command(shape(name, app), detach=True))
        tick_until(manager, (tmp_path / "up").exists)
    with ProcessManager(place, journal=journal) as manager:
        [task] = manager.recovered
        tick_until(manager, lambda: task.state is State.RUNNING)
        task.cancel()
        manager.run(DEADLINE)
        wait_until((tmp_path / "clean").exists)
    assert (tmp_path / "asked").read_text() == "!"


@pytest.mark.parametrize("how", ["close", "expire", "crew", "executor"])
def test_every_stop_waits_for_the_tree(short_path, tmp_path, app, how):
    place, words = f"unix://{short_path}/m", f"{app}; true"
    if how in ("close", "expire"):
        with ProcessManager(place) as manager:
            task = manager.add_task(Task.command(["sh", "-c", words], expires_in=1.0 if how == "expire" else None))
            tick_until(manager, (tmp_path / "up").exists)
            if how == "expire":
                manager.run(DEADLINE)
                assert task.state is State.EXPIRED
    elif how == "crew":
        with ProcessManager(place) as manager, Crew(manager, 1) as crew:
            crew.submit(call, words)
            tick_until(manager, (tmp_path / "up").exists)
    else:
        with ProcessExecutor(1) as executor:
            executor.submit(call, words)
            wait_until((tmp_path / "up").exists)
            executor.terminate_workers()
    assert (tmp_path / "clean").exists()
    assert (tmp_path / "asked").read_text() == "!"


@pytest.mark.parametrize("name", ["and", "daemon", "session of three levels"])
@pytest.mark.parametrize("after", ["the grace period", "a second request"])
def test_what_does_not_end_is_killed(short_path, tmp_path, app, name, after):
    grace = 0.5 if after == "the grace period" else DEADLINE
    with ProcessManager(f"unix://{short_path}/m", grace=grace) as manager:
        task = manager.add_task(Task.command(shape(name, app.replace("willing", "stubborn"))))
        tick_until(manager, (tmp_path / "up").exists)
        with Process.open(int((tmp_path / "up").read_text())) as program:
            task.cancel()
            tick_until(manager, (tmp_path / "asked").exists)
            if grace == DEADLINE:
                manager.kill()
            manager.run(DEADLINE)
            assert task.done()
            assert program.wait(DEADLINE)


def test_a_process_that_is_forked_during_the_stop_has_the_rest_of_the_grace_period(local, tmp_path, app):
    cancelled(local, Task.command(["sh", "-c", f"{app.replace('willing', 'forks')}; true"]), tmp_path)


@pytest.mark.parametrize("left", ["nohup APP &", "(setsid APP &)"], ids=["background", "daemon"])
def test_what_a_task_leaves_when_it_ends_by_itself_is_killed(local, tmp_path, app, left):
    words = f"{left.replace('APP', app)}\nuntil test -e {tmp_path}/go; do sleep 0.01; done; exit 3"
    task = local.add_task(Task.command(["bash", "-c", words]))
    tick_until(local, (tmp_path / "up").exists)
    with Process.open(int((tmp_path / "up").read_text())) as program:
        (tmp_path / "go").touch()
        local.run(DEADLINE)
        assert task.exit_code == 3
        assert program.wait(DEADLINE)
    assert not (tmp_path / "asked").exists()


def test_trees_that_end_together_keep_their_own_grace_period(local, tmp_path, app):
    """One ends by itself while another is stopped, and both leave daemons: the second keeps its time."""
    folders = [tmp_path / str(number) for number in range(6)]
    tasks = []
    for number, folder in enumerate(folders):
        folder.mkdir()
        words = f"(setsid {app.replace(f' {tmp_path} ', f' {folder} ')} &); trap 'exit 0' TERM; "
        words += f"until test -e {tmp_path}/go; do sleep 0.01; done" if number % 2 else "sleep 1000 & wait"
        tasks.append(Task.command(["sh", "-c", words]))
        local.add_task(tasks[-1])
    tick_until(local, lambda: all((folder / "up").exists() for folder in folders))
    (tmp_path / "go").touch()
    for task in tasks[::2]:
        task.cancel()
    local.run(DEADLINE)
    assert all((folder / "clean").exists() for folder in folders[::2])
    assert [task.state for task in tasks] == [State.CANCELLED, State.DONE] * 3


@pytest.mark.parametrize(
    ("command", "number"),
    [("run", signal.SIGINT), ("map", signal.SIGTERM), ("up", signal.SIGHUP), ("up", signal.SIGUSR1)],
    ids=str,
)
def test_a_command_waits_for_the_tree(runtime_folder, tmp_path, app, command, number):
    words = f"cd / && {app}; true"
    (tmp_path / "Procfile").write_text(f"web: {words}\n")
    arguments = {
        "run": ["run", "--", "sh", "-c", words],
        "map": ["map", "sh", "-c", words, ":::", "a"],
        "up": ["up", f"{tmp_path}/Procfile"],
    }[command]
    with subprocess.Popen([sys.executable, "-m", "doorman", *arguments], stderr=subprocess.DEVNULL) as process:
        try:
            wait_until((tmp_path / "up").exists)
            process.send_signal(number)
            process.wait(DEADLINE)
        finally:
            process.kill()
    assert (tmp_path / "clean").exists()
    assert (tmp_path / "asked").read_text() == "!"
