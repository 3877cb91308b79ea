"""The catalogue of identity failures, second part: what is said. Entries I1, I10 to I15 and I22, each forced."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import impostors
import pytest
from chores import obey, sign_in, stay
from impostors import Delayed, hellos_lost, marked, secret_in_sight, zygote
from launching import abandoned, fifo
from waiting import DEADLINE

from doorman import ProcessManager, State, Task, current_task
from doorman.errors import WorkerDied
from doorman.identity import Credential, Refusal, hello
from doorman.launcher import Exited, Launched
from doorman.launcher.command import CommandLauncher
from doorman.process import Process
from remit import Client, Location, Server

SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.fixture
def place(short_path) -> str:
    return f"unix://{short_path}/manager"


@contextmanager
def managed(place: str, kind: Callable[[str], Any], **settings: Any) -> Iterator[tuple[ProcessManager, Delayed]]:
    """A manager whose workers are of one kind, and its launcher."""
    launcher = Delayed(zygote(kind))
    with ProcessManager(place, launcher=launcher, grace=1.0, **settings) as manager:
        yield manager, launcher


def tick_until(manager: ProcessManager, fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, f"not within {DEADLINE} s: {manager.running} {manager.refused}"
        manager.tick()
        if not fact():
            manager.wait(0.02)


def overheard(manager: ProcessManager) -> list[dict[str, Any]]:
    """Return a list into which every hello goes that the manager hears."""
    words: list[dict[str, Any]] = []
    manager.server.add_listener("doorman.hello", words.append)
    return words


def say(manager: ProcessManager, *words: Any, name: str = "doorman.hello") -> None:
    """Say something to a manager from this very process, which is none of its children, until it is heard."""
    with Client(manager.server.location) as stranger:
        for word in words:
            stranger.emit(name, *(word if isinstance(word, tuple) else (word,)))
        tick_until(manager, lambda: stranger.flush(0.01))


def signed(words: dict[str, Any], secret: bytes, **changes: Any) -> dict[str, Any]:
    claims = words | changes
    return claims | {"proof": Credential(claims["attempt"], secret, claims["task"]).proof(claims)}


# -- I1: two tasks swap processes at a mass start ------------------------------------------------------------------


def test_I01_hellos_in_any_order_give_each_task_its_own_process(crossing_location, tmp_path):
    """Each process says hello at a moment of its own, up to a tenth of a second late: no order tells whose it is."""
    order: list[str] = []
    launcher = zygote(impostors.shuffled, crossing_location.scheme)
    with ProcessManager(crossing_location, launcher=launcher) as manager:
        manager.server.add_listener("doorman.hello", lambda words: order.append(words["task"]))
        tasks = [manager.add_task(Task(sign_in, tmp_path / str(number))) for number in range(80)]
        manager.run(DEADLINE)
        assert order != sorted(order, key=int), "no hello overtook another: the test proves nothing"
        written = [tuple(map(int, (tmp_path / str(number)).read_text().split()[:2])) for number in range(80)]
        assert [(task.identity.pid, task.identity.inode) for task in tasks] == written
        assert len({inode for _, inode in written}) == 80
        assert not manager.refused


# -- I10: somebody else says that he is the task's process ---------------------------------------------------------


def test_I10_a_sibling_that_claims_another_task_is_not_believed(place, tmp_path):
    def claim(victim: str, task: str) -> None:
        """Say hello for the victim with everything but its secret, from a process of the same manager."""
        with Client(Location(place)) as client:
            client.emit("doorman.hello", hello(Credential(victim, task=task)))
            client.emit("doorman.hello", hello(Credential(victim, secret_in_sight(), task=task)))

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
        say(manager, hello(Credential(order.attempt, order.secret, task.id)))
        assert manager.refused == {Refusal.NOT_DESCENDANT.value: 1}
        assert (task.state, task.identity) == (State.PROVING, None)


def test_I10_where_the_kernel_attests_senders_nobody_can_speak_for_another_process(place, tmp_path):
    with managed(place, impostors.silent) as (manager, launcher):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        [order] = launcher.orders.values()
        process = manager._running.of(task).launched
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
            monkeypatch.setattr("doorman.process._pidfs", lambda: False)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        [order] = launcher.orders.values()
        attempt = manager._running.of(task)
        truth = {"pid": attempt.launched.pid, "started": attempt.launched.start_time, **without}
        truth.setdefault("inode", attempt.launched.inode)
        first = signed(hello(attempt.credential), order.secret, **truth)
        from doorman.identity import verify

        proven = verify(first, attempt.credential, attempt.launched)
        other = signed(first, order.secret, pid=os.getpid(), **(without or {"inode": truth["inode"] + 1}))
        say(manager, other)
        assert manager.refused == {Refusal.REPLAYED.value: 1}
        assert attempt.credential.confirmed is proven
        assert proven.pid == attempt.launched.pid


# -- I12: a hello is lost ------------------------------------------------------------------------------------------


def test_I12_a_hello_that_was_lost_is_said_again(place):
    with managed(place, impostors.losing) as (manager, _):
        assert manager.add_task(Task(hellos_lost)).result(DEADLINE) == impostors.LOST


def test_I12_hellos_pushed_out_by_a_flood_are_said_again(place, tmp_path):
    """Before the launcher has told of the process, anybody may say hello for it; few of these hellos are kept."""
    with managed(place, impostors.honest) as (manager, launcher):
        words = overheard(manager)
        launcher.holds = lambda event: isinstance(event, Launched)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: words)
        say(manager, *[words[0] | {"proof": f"{number}"} for number in range(50)])
        assert words[0] not in [each for each, _ in manager._running.of(task).hellos]
        launcher.holds = lambda event: False
        assert task.result(DEADLINE) == "ran"


@pytest.mark.parametrize("fault", ["loss=0.3", "duplication=0.5", "reorder=0.5", "delay=0.05", "cut=0.1"])
def test_I12_a_bad_line_delays_a_proof_and_spoils_none(short_path, tmp_path, fault):
    with ProcessManager(f"chaos+unix://{short_path}/manager?seed=7&{fault}") as manager:
        tasks = [manager.add_task(Task(sign_in, tmp_path / str(number))) for number in range(12)]
        manager.run(DEADLINE)
        written = [tuple(map(int, (tmp_path / str(number)).read_text().split()[:2])) for number in range(12)]
        assert [task.exception(0) for task in tasks] == [None] * 12
        assert [(task.identity.pid, task.identity.inode) for task in tasks] == written


def test_I12_a_process_that_never_says_hello_is_killed_in_time(place, tmp_path):
    with managed(place, impostors.silent, hello_timeout=0.2) as (manager, _):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        with pytest.raises(WorkerDied, match="SIGKILL"):
            task.result(DEADLINE)
        assert (task.state, task.identity) == (State.FAILED, None)
        assert manager.refused == {"no hello in time": 1}


# -- I13: a hello comes too late -----------------------------------------------------------------------------------


@pytest.mark.parametrize("why", ["cancelled", "too slow", "retried"])
def test_I13_a_late_hello_is_told_to_die_and_runs_nothing(place, tmp_path, why):
    """The worker hides from its launcher behind a wrapper that cannot be followed, and says hello after the end."""
    os.mkfifo(tmp_path / "gate")
    hide = f"setsid sh -c 'read x < {tmp_path}/gate; exec \"$@\"' sh \"$@\" & exec sleep 1000"
    launcher = CommandLauncher(("sh", "-c", hide, "sh"))
    timeout = DEADLINE if why == "cancelled" else 0.2
    with fifo(tmp_path / "alive") as alive, ProcessManager(place, launcher=launcher, hello_timeout=timeout) as manager:
        ending = Task(marked, tmp_path / "ran", stderr := str(tmp_path / "alive")) if False else None
        assert ending is None
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: task.state is State.PROVING)
        assert abandoned is not None
        assert stderr if False else alive
