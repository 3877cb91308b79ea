"""The catalogue of identity failures: what processes do. Entries I2 to I4, I17 to I19 and I21, each forced.

Entries are chosen by number: ``pytest -k I05``. The others are in test_identity_numbers.py, test_identity_hellos.py and
test_identity_impostors.py.
"""

from __future__ import annotations

import inspect
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
import reapers
from chores import stay
from impostors import credential_in_sight, honest, zygote
from launching import abandoned, fifo, opened
from managing import behind, end, signed, tick_until
from namespaces import apart
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, State, Task
from doorman.errors import IdentityRefused, WorkerDied
from doorman.identity import Credential, Refusal, hello, verify
from doorman.launcher.command import CommandLauncher
from doorman.process import Process, start_time

SUPPORT = str(Path(__file__).parents[1] / "support")
EXEC = ("sh", "-c", 'exec "$@"', "sh")
EXACT = {
    "nothing": (),
    "nice": ("nice", "-n", "1"),
    "env": ("env", "-i"),
    "nohup": ("nohup",),
    "exec": EXEC,
    "exec exec": (*EXEC, *EXEC),
}
"""Wrappers whose process becomes the task's."""
WRONG = {
    "sh": ("sh", "-c", '"$@"; exit $?', "sh"),
    "sh in sh": ("sh", "-c", '"$@"; exit $?', "sh", "sh", "-c", '"$@"; exit $?', "sh"),
    "timeout": ("timeout", "1000"),
    "pipeline": ("sh", "-c", '"$@" | cat', "sh"),
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


# -- I3: double forks, daemons, sessions of their own --------------------------------------------------------------


def descend(*steps: str) -> None:
    """Fork, and lead the fork through the steps; each further fork leaves its parent behind."""
    if os.fork():
        return
    for step in steps:
        if step == "session":
            os.setsid()
        elif os.fork():
            os._exit(0)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    stay()


def beget(path: Path, end: str) -> None:
    """Have descendants of every kind, each of which holds a FIFO open; then return, or stay."""
    holder = os.open(path, os.O_WRONLY)
    os.set_inheritable(holder, True)
    for steps in ((), ("session",), ("fork",), ("session", "fork"), ("fork", "session", "fork", "session", "fork")):
        descend(*steps)
    words = ["setsid", "--fork", "nohup", "sleep", "1000"]
    os.waitpid(os.posix_spawn("/usr/bin/env", ["env", *words], dict(os.environ)), 0)
    os.write(holder, b"!")
    if end != "returns":
        stay()


@pytest.mark.parametrize("ending", ["returns", "is cancelled", "is killed"])
def test_I03_no_descendant_outlives_its_task(manager, tmp_path, ending):
    """Neither children nor orphans, in the task's session or in one of their own; all deaf to SIGTERM."""
    with fifo(tmp_path / "alive") as alive:
        task = manager.add_task(Task(beget, tmp_path / "alive", ending))
        tick_until(manager, lambda: task.identity)
        manager.run(0.0)
        assert opened(alive)
        if ending == "is cancelled":
            assert manager.cancel(task)
        elif ending == "is killed":
            with task.identity.open() as process:
                process.signal(signal.SIGKILL)
        manager.run(DEADLINE)
        assert task.done()
        assert abandoned(alive)


def test_I03_no_descendant_outlives_a_manager_that_is_killed(short_path, tmp_path):
    script = f"""
from pathlib import Path
from doorman import ProcessManager, Task
with ProcessManager("unix://{short_path}/m") as manager:
    manager.add_task(Task(beget, Path({str(tmp_path)!r}) / "alive", "stays"))
    manager.run()
"""
    source = "import os, signal\nfrom chores import stay\n" + "\n".join(map(inspect.getsource, (descend, beget)))
    with fifo(tmp_path / "alive") as alive:
        with subprocess.Popen(
            [sys.executable, "-c", "from __future__ import annotations\n" + source + script],
            env={**os.environ, "PYTHONPATH": SUPPORT},
        ) as owner:
            assert opened(alive)
            owner.kill()
        assert abandoned(alive)


# -- I4: the process that proved itself leaves the work to a fork --------------------------------------------------


def hand_over(path: Path) -> None:
    """Leave the work to a fork."""
    holder = os.open(path, os.O_WRONLY)
    if os.fork():
        os._exit(0)
    os.setsid()
    os.write(holder, b"!")
    stay()


def test_I04_a_task_that_hands_over_to_its_fork_has_failed_and_the_fork_is_ended(manager, tmp_path):
    with fifo(tmp_path / "alive") as alive:
        task = manager.add_task(Task(hand_over, tmp_path / "alive"))
        with pytest.raises(WorkerDied, match="exit code 0"):
            task.result(DEADLINE)
        assert task.state is State.FAILED
        assert abandoned(alive)


# -- I17: a zombie looks alive -------------------------------------------------------------------------------------


def test_I17_a_zombie_is_not_alive_whatever_its_number_says(short_path):
    """Its zygote is stopped and cannot reap it."""
    launcher = zygote(honest)
    with ProcessManager(f"unix://{short_path}/m", launcher=launcher, grace=0.1) as manager:
        task = manager.add_task(Task(stay))
        tick_until(manager, lambda: task.identity)
        with Process.open(launcher.pid) as reaper, task.identity.open() as process:
            reaper.signal(signal.SIGSTOP)
            process.signal(signal.SIGKILL)
            assert process.wait(DEADLINE)
            assert Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
            os.kill(process.pid, 0)  # as if it were there
            assert not process.alive()
            assert not process.signal(signal.SIGTERM)
            with pytest.raises(IdentityRefused, match="has ended"):
                task.identity.open()
            assert not task.done()
            reaper.signal(signal.SIGCONT)
        with pytest.raises(WorkerDied, match="SIGKILL"):
            task.result(DEADLINE)


# -- I18: somebody else reaps --------------------------------------------------------------------------------------


def test_I18_a_foreign_reaper_takes_no_exit_code_of_a_tasks_and_never_makes_it_0():
    told = apart(reapers.with_foreign_reaper)
    assert told.pop("stolen") == ["lost", None, None, "WorkerDied"]
    assert told == {"values": True, "code": 7, "signal": signal.SIGTERM}


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


# -- I21: threads --------------------------------------------------------------------------------------------------


def fork_from_thread() -> tuple[int, int, list[str]]:
    """Let a thread fork, and its fork try to speak for the task; return who this is and what the fork could do."""
    credential, reader, words = credential_in_sight(), *os.pipe()

    def fork() -> None:
        if os.fork():
            return
        for act in (lambda: hello(credential), lambda: credential.sign(b"result")):
            try:
                act()
            except ValueError:
                os.write(words, b"refused ")
        os._exit(0)

    thread = threading.Thread(target=fork)
    thread.start()
    thread.join()
    os.wait()
    told = os.read(reader, 100).decode().split()
    return os.getpid(), threading.get_native_id(), told


def test_I21_a_fork_from_a_thread_is_not_the_task(manager):
    task = manager.add_task(Task(fork_from_thread))
    pid, thread, told = task.result(DEADLINE)
    assert (task.identity.pid, told) == (pid, ["refused", "refused"])
    assert thread == pid


def test_I21_tasks_outlive_the_thread_that_started_their_zygote(short_path):
    """The kernel takes the thread for the parent: what ends with its parent would end with that thread."""
    launcher = zygote(honest)
    thread = threading.Thread(target=launcher.wait_ready, args=(DEADLINE,))
    thread.start()
    thread.join()
    pid = launcher.pid
    with ProcessManager(f"unix://{short_path}/m", launcher=launcher) as manager:
        assert manager.add_task(Task(divmod, 17, 5)).result(DEADLINE) == (3, 2)
        assert launcher.pid == pid


@pytest.mark.parametrize("inode", ["with inodes", "without inodes"])
def test_I21_the_number_of_a_thread_is_none_of_a_process(inode):
    stop, credential = threading.Event(), Credential("a", task="1")
    thread = threading.Thread(target=stop.wait)
    thread.start()
    try:
        words = signed(hello(credential), credential.secret, pid=thread.native_id)
        if inode == "with inodes":
            assert verify(words, credential, None).pid == os.getpid()
        else:
            with pytest.raises(IdentityRefused) as refused:
                verify(signed(words, credential.secret, inode=None), credential, None)
            assert refused.value.reason in (Refusal.NO_SUCH_PROCESS, Refusal.OTHER_PROCESS)
    finally:
        stop.set()
        thread.join()
