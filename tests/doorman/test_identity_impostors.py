"""The catalogue of identity failures: who speaks. Entries I10, I11 and I22, each forced."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import impostors
import pytest
from chores import obey
from impostors import credential_in_sight, marked
from internals import attempt_of
from managing import managed, overheard, say, signed, tick_until
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.identity import Credential, Refusal, hello, verify
from doorman.launcher import Launched
from doorman.process import Process
from remit import Client, Location


@pytest.fixture
def place(short_path) -> str:
    return f"unix://{short_path}/manager"


# -- I10: somebody else says that he is the task's process ---------------------------------------------------------


def test_I10_a_sibling_that_claims_another_task_is_not_believed(place, tmp_path):
    def claim(victim: str, task: str) -> None:
        """Say hello for the victim with everything but its secret, from a process of the same manager."""
        with Client(Location(place)) as client:
            client.emit("doorman.hello", hello(Credential(victim, task=task)))
            client.emit("doorman.hello", hello(Credential(victim, credential_in_sight().secret, task=task)))

    with managed(place, impostors.honest) as (manager, launcher):
        launcher.holds = lambda event: event.attempt.startswith(f"{victim.id}.") and isinstance(event, Launched)
        victim = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: launcher.orders and launcher.held)
        [attempt] = launcher.orders
        spoofer = manager.add_task(Task(claim, attempt, victim.id))
        spoofer.result(DEADLINE)
        assert victim.state is State.LAUNCHING
        launcher.holds = lambda event: False
        assert victim.result(DEADLINE) == "ran"
        assert manager.refused == {Refusal.FORGED.value: 2}
        assert (tmp_path / "ran").read_text() == f"{victim.identity.pid}\n" != f"{spoofer.identity.pid}\n"


def test_I10_even_who_has_the_secret_must_descend_from_what_was_launched(place, tmp_path):
    with managed(place, impostors.silent) as (manager, launcher):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        [order] = launcher.orders.values()
        with subprocess.Popen(["cat"], stdin=subprocess.PIPE) as cat, Process.open(cat.pid) as stranger:
            truth = {"pid": stranger.pid, "inode": stranger.inode, "started": stranger.start_time}
            say(manager, signed(hello(Credential(order.attempt, order.secret, task.id)), order.secret, **truth))
        assert manager.refused == {Refusal.NOT_DESCENDANT.value: 1}
        assert (task.state, task.identity) == (State.PROVING, None)


def test_I10_where_the_kernel_attests_senders_nobody_can_speak_for_another_process(place, tmp_path):
    with managed(place, impostors.silent) as (manager, launcher):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        [order] = launcher.orders.values()
        process = attempt_of(manager, task).launched
        truth = {"pid": process.pid, "inode": process.inode, "started": process.start_time}
        own = hello(Credential(order.attempt, order.secret, task.id))
        say(manager, signed(own, order.secret, **truth))
        assert manager.refused == {Refusal.WRONG_PEER.value: 1}
        assert task.identity is None


# -- I11: a hello comes twice --------------------------------------------------------------------------------------


def test_I11_a_hello_said_again_changes_nothing(place, tmp_path):
    with managed(place, impostors.repeating) as (manager, _):
        words = overheard(manager)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        assert task.result(DEADLINE) == "ran"
        assert len(words) >= 4
        assert (tmp_path / "ran").read_text() == f"{task.identity.pid}\n"
        assert not manager.refused


def test_I11_a_replayed_hello_does_not_take_the_task_over(crossing_location, tmp_path):
    """Word for word what the process said, by somebody who has overheard it: while it runs, and when it is over."""
    with ProcessManager(crossing_location) as manager:
        words = overheard(manager)
        task = manager.add_task(Task(obey, tmp_path / "up"))
        tick_until(manager, (tmp_path / "up").exists)
        identity = task.identity
        say(manager, words[0])
        assert sum(manager.refused.values()) == 1
        assert task.identity is identity
        manager.emit_to(task, "word", "for the task alone")
        manager.emit_to(task, "stop")
        assert task.result(DEADLINE) == ["for the task alone"]
        say(manager, words[0])
        assert sum(manager.refused.values()) == 2
        assert task.identity is identity


@pytest.mark.parametrize("inode", ["with inodes", "without inodes"])
def test_I11_a_second_process_under_the_same_secret_is_a_conflict(place, tmp_path, monkeypatch, inode):
    """Without inodes the start time of both may be the same, too: it is counted in hundredths of a second."""
    without = {"inode": None} if inode == "without inodes" else {}
    with managed(place, impostors.silent) as (manager, launcher):
        if without:
            monkeypatch.setattr("doorman.process.has_pidfd_inodes", lambda: False)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        [order] = launcher.orders.values()
        attempt = attempt_of(manager, task)
        truth = {"pid": attempt.launched.pid, "started": attempt.launched.start_time, **without}
        truth.setdefault("inode", attempt.launched.inode)
        first = signed(hello(attempt.credential), order.secret, **truth)
        proven = verify(first, attempt.credential, attempt.launched)
        other = signed(first, order.secret, pid=os.getpid(), **(without or {"inode": truth["inode"] + 1}))
        say(manager, other)
        assert manager.refused == {Refusal.REPLAYED.value: 1}
        assert attempt.credential.confirmed is proven
        assert proven.pid == attempt.launched.pid


# -- I22: a fork inherits the secret and the connection ------------------------------------------------------------


def fork_and_return() -> tuple[str, int]:
    """Return twice: in this process, and in a fork of it."""
    child = os.fork()
    if not child:
        return "the fork's word", 0
    return "the task's word", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def secrets_of_family() -> tuple[bytes, bytes]:
    """Return the secret as a task can see it, and as a fork of it can."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, credential_in_sight().secret or b"forgotten")
        os._exit(0)
    os.waitpid(child, 0)
    seen = os.read(reader, 64)
    os.close(reader)
    os.close(writer)
    return credential_in_sight().secret, seen


def descriptors_of_program(path: Path) -> list[str]:
    """Return the descriptors that a program gets which a task starts without closing any."""
    output = (os.POSIX_SPAWN_OPEN, 1, path, os.O_WRONLY | os.O_CREAT, 0o600)
    os.waitpid(os.posix_spawn("/bin/ls", ["ls", "/proc/self/fd"], dict(os.environ), file_actions=[output]), 0)
    return sorted(path.read_text().split(), key=int)


def test_I22_what_a_task_forks_can_neither_speak_for_it_nor_reach_its_manager(crossing_location, tmp_path):
    with ProcessManager(crossing_location, log_path=tmp_path / "logs") as manager:
        twice = manager.add_task(Task(fork_and_return))
        family = manager.add_task(Task(secrets_of_family))
        program = manager.add_task(Task(descriptors_of_program, tmp_path / "descriptors"))
        assert twice.result(DEADLINE) == ("the task's word", 1)
        assert "no secret of attempt" in twice.output[1].read_text()
        own, forks = family.result(DEADLINE)
        assert (len(own), forks) == (32, b"forgotten")
        assert program.result(DEADLINE) == ["0", "1", "2", "3"]  # the last is the listing's own
        assert not manager.refused
