"""The catalogue of identity failures: forks, daemons, threads. Entries I3, I4 and I21."""

from __future__ import annotations

import inspect
import os
import select
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chores import stay
from impostors import credential_in_sight, honest, marked, zygote
from launching import abandoned, fifo, opened
from managing import signed, tick_until
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.errors import IdentityRefused, WorkerDied
from doorman.identity import Credential, Refusal, hello, verify
from doorman.process import start_time

SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/manager", grace=0.3) as manager:
        yield manager


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


@pytest.mark.parametrize("wrapper", [("setsid", "--fork"), ("sh", "-c", '(setsid "$@" &)', "sh")])
def test_I03_a_wrapper_that_leaves_the_task_to_an_orphan_fails_it_and_the_orphan_runs_nothing(
    manager, tmp_path, wrapper
):
    """Its parent has ended before it could say who it is: nobody knows any more whose child it was."""
    with fifo(tmp_path / "alive") as alive:
        holds = ("sh", "-c", f'exec 9> {tmp_path}/alive; printf ! >&9; exec "$@"', "sh")
        task = manager.add_task(Task(marked, tmp_path / "ran", wrapper=(*holds, *wrapper)))
        with pytest.raises(WorkerDied, match="exit code 0"):
            task.result(DEADLINE)
        assert (task.state, task.identity) == (State.FAILED, None)
        assert opened(alive)
        assert abandoned(alive)
    assert not (tmp_path / "ran").exists()


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

    def start() -> None:
        launcher.start()
        select.select([launcher], [], [], DEADLINE)  # until it has imported its modules

    thread = threading.Thread(target=start)
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
            old = {"inode": None, "started": start_time(thread.native_id)}
            with pytest.raises(IdentityRefused) as refused:
                verify(signed(words, credential.secret, **old), credential, None)
            assert refused.value.reason in (Refusal.NO_SUCH_PROCESS, Refusal.OTHER_PROCESS)
    finally:
        stop.set()
        thread.join()
