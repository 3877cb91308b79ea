"""The catalogue of identity failures: wrappers, and programs that a process becomes. Entries I2 and I19.

Entries are chosen by number, ``pytest -k I05``, from test_identity_*.py.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from chores import stay
from managing import behind, end, tick_until
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, Task
from doorman.errors import WorkerDied
from doorman.launcher.command import CommandLauncher
from doorman.process import start_time

EXEC = ("sh", "-c", 'exec "$@"', "sh")
EXACT = {
    "nothing": (),
    "nice": ("nice", "-n", "1"),
    "env": ("env", "-i"),
    "nohup": ("nohup",),
    "stdbuf": ("stdbuf", "-oL"),
    "exec": EXEC,
    "exec exec": (*EXEC, *EXEC),
}
"""Wrappers whose process becomes the task's."""
WRONG = {
    "sh": ("sh", "-c", '"$@"; exit $?', "sh"),
    "sh in sh": ("sh", "-c", '"$@"; exit $?', "sh", "sh", "-c", '"$@"; exit $?', "sh"),
    "timeout": ("timeout", "1000"),
    "timeout in the foreground": ("timeout", "--foreground", "1000"),
    "unshare": ("unshare", "--fork"),
    "pipeline": ("sh", "-c", '"$@" | cat', "sh"),
    "end of a pipeline": ("sh", "-c", ': | "$@"', "sh"),
    "background": ("sh", "-c", '"$@" & wait', "sh"),
    "session": ("setsid", "--fork", "--wait"),
}
"""Wrappers whose number is not the task's."""


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/manager", grace=0.3) as manager:
        yield manager


# -- I2: the number of a wrapper -----------------------------------------------------------------------------------


def test_I02_behind_a_wrapper_it_is_the_task_that_is_known_and_stopped(manager, tmp_path):
    found = behind(manager, WRONG, tmp_path)
    for name, task, said, wrapper in found:
        assert (task.identity.pid, task.identity.inode) == said, name
        assert task.identity.pid != wrapper, name
        assert task.identity.strength == "pidfd-inode"
    end(manager, *(each.task for each in found))
    assert not manager.refused


def leave_on_demand(folder: Path) -> None:
    """Take time to leave when asked to."""

    def leave(*_: object) -> None:
        (folder / "asked").touch()
        wait_until((folder / "leave").exists)
        (folder / "left").touch()
        raise SystemExit

    signal.signal(signal.SIGTERM, leave)
    (folder / "up").touch()
    stay()


def test_I02_behind_a_wrapper_it_is_the_task_that_is_asked_to_end_and_has_its_grace(short_path, tmp_path):
    folders = [tmp_path / name for name in WRONG]
    with ProcessManager(f"unix://{short_path}/m", grace=DEADLINE) as manager:
        for folder in folders:
            folder.mkdir()
            manager.add_task(Task(leave_on_demand, folder, wrapper=WRONG[folder.name]))
        tick_until(manager, lambda: all((folder / "up").exists() for folder in folders))
        manager.stop()
        tick_until(manager, lambda: all((folder / "asked").exists() for folder in folders))
        for folder in folders:
            (folder / "leave").touch()
        manager.run(DEADLINE)
        assert [folder.name for folder in folders if not (folder / "left").exists()] == []


# -- I19: the process becomes another program ----------------------------------------------------------------------


def test_I19_a_wrapper_that_becomes_the_task_is_the_task(manager, tmp_path):
    found = behind(manager, EXACT, tmp_path)
    for name, task, said, wrapper in found:
        assert (task.identity.pid, task.identity.inode) == said, name
        assert task.identity.pid == wrapper, name
    end(manager, *(each.task for each in found))


def test_I19_a_command_that_execs_on_and_on_stays_the_same_process(manager, tmp_path):
    task = manager.add_task(Task.command([*EXEC, "nice", *EXEC, "env", "-i", *EXEC, "sleep", "1000"]))
    tick_until(manager, lambda: task.identity)
    with task.identity.open() as process:
        wait_until(lambda: Path(f"/proc/{process.pid}/cmdline").read_bytes() == b"sleep\x001000\0")
        assert (process.inode, start_time(process.pid)) == (task.identity.inode, task.identity.start_time)
    end(manager, task)


CLOSING = (
    sys.executable,
    "-S",
    "-c",
    "import os, sys; os.closerange(3, 4096); os.execvpe(sys.argv[1], sys.argv[1:], {'PATH': os.environ['PATH']})",
)
"""A wrapper that hands down neither descriptors nor environment, as sudo does."""


def test_I19_a_wrapper_that_closes_descriptors_gets_the_secret_by_standard_input(short_path, tmp_path):
    with ProcessManager(f"unix://{short_path}/m", launcher=CommandLauncher(CLOSING, inherits=False)) as manager:
        task = manager.add_task(Task(divmod, 17, 5))
        assert task.result(DEADLINE) == (3, 2)
        assert task.identity.strength == "pidfd-inode"


def test_I19_a_wrapper_that_loses_the_secret_fails_its_task(short_path):
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path / "logs") as manager:
        task = manager.add_task(Task(divmod, 17, 5, wrapper=CLOSING))
        with pytest.raises(WorkerDied, match="exit code 1"):
            task.result(DEADLINE)
        assert task.identity is None
        assert "Bad file descriptor" in task.output[1].read_text()
