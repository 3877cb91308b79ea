"""The catalogue of identity failures, second part: what is said. Entries I1, I10 to I15 and I22, each forced."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import impostors
import msgspec
import pytest
from chores import obey, sign_in, stay
from impostors import Delayed, hellos_lost, marked, secret_in_sight, zygote
from launching import abandoned, fifo, opened, until_over
from ticking import ticked
from waiting import DEADLINE

from doorman import ProcessManager, State, Task, worker
from doorman.errors import WorkerDied
from doorman.identity import Credential, Refusal, hello, verify
from doorman.launcher import Exited, Launched, Order
from doorman.launcher.command import CommandLauncher
from doorman.process import Process
from remit import Client, Event, Location, Server

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


@pytest.mark.parametrize("fault", ["loss=0.1", "duplication=0.5", "reorder=0.5", "delay=0.05", "cut=0.05"])
def test_I12_a_bad_line_delays_a_proof_and_spoils_none(short_path, tmp_path, fault):
    with ProcessManager(f"chaos+unix://{short_path}/manager?seed=7&{fault}") as manager:
        tasks = [manager.add_task(Task(sign_in, tmp_path / str(number))) for number in range(6)]
        manager.run(DEADLINE)
        written = [tuple(map(int, (tmp_path / str(number)).read_text().split()[:2])) for number in range(6)]
        assert [task.exception(0) for task in tasks] == [None] * 6
        assert [(task.identity.pid, task.identity.inode) for task in tasks] == written


def test_I12_a_process_that_never_says_hello_is_killed_in_time(place, tmp_path):
    with managed(place, impostors.silent, hello_timeout=0.2) as (manager, _):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        with pytest.raises(WorkerDied, match="SIGKILL"):
            task.result(DEADLINE)
        assert (task.state, task.identity) == (State.FAILED, None)
        assert manager.refused == {"no hello in time": 1}


# -- I13: a hello comes too late -----------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ["cancelled", "too slow", "tried again"])
def test_I13_a_late_hello_is_told_to_die_and_runs_nothing(place, tmp_path, end):
    """A wrapper hides its worker in a session of its own, where no signal finds it before it has said hello."""
    hidden = f'exec 9> {tmp_path}/alive; printf ! >&9; while ! test -e {tmp_path}/gate; do sleep 0.01; done; exec "$@"'
    launcher = CommandLauncher(("sh", "-c", 'setsid sh -c "$0" sh "$@" & wait', hidden))
    patience = 0.2 if end == "too slow" else DEADLINE
    with (
        fifo(tmp_path / "alive") as alive,
        ProcessManager(place, launcher=launcher, hello_timeout=patience, grace=0.5) as manager,
    ):
        task = manager.add_task(Task(marked, tmp_path / "ran", retries=1))
        tick_until(manager, lambda: task.state is State.PROVING)
        assert opened(alive)
        if end == "cancelled":
            manager.cancel(task)
        elif end == "tried again":
            manager._running.of(task).launched.signal_group(signal.SIGKILL)
            tick_until(manager, lambda: task.attempt == 2)
        else:
            tick_until(manager, task.done)
        (tmp_path / "gate").touch()
        tick_until(manager, lambda: manager.refused[Refusal.LATE.value])
        if end == "tried again":
            assert task.result(DEADLINE) == "ran"
            assert (tmp_path / "ran").read_text() == f"{task.identity.pid}\n"
        assert abandoned(alive)
        assert (tmp_path / "ran").exists() == (end == "tried again")


# -- I14: words come in another order ------------------------------------------------------------------------------


def test_I14_a_hello_before_the_launchers_word_waits_for_it(place, tmp_path):
    with managed(place, impostors.honest) as (manager, launcher):
        words = overheard(manager)
        launcher.holds = lambda event: isinstance(event, Launched)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: words)
        assert (task.state, task.identity) == (State.LAUNCHING, None)
        launcher.holds = lambda event: False
        assert task.result(DEADLINE) == "ran"
        assert task.identity.inode == words[0]["inode"]


def test_I14_a_process_that_ended_before_its_hello_was_heard_has_failed(place, tmp_path):
    with managed(place, impostors.hasty) as (manager, launcher):
        words = overheard(manager)
        launcher.holds = lambda event: True
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: words and any(isinstance(event, Exited) for event in launcher.held))
        launcher.holds = lambda event: False
        with pytest.raises(WorkerDied, match="exit code 7"):
            task.result(DEADLINE)
        assert task.identity is None
        assert manager.refused == {Refusal.NO_SUCH_PROCESS.value: 1}


def test_I14_a_result_without_a_proof_is_none(place, tmp_path):
    with managed(place, impostors.unproven) as (manager, _):
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        with pytest.raises(WorkerDied, match="exit code 0"):
            task.result(DEADLINE)
        assert (task.state, task.identity) == (State.FAILED, None)
        assert manager.refused == {"result of a process that has not proven itself": 1}


def test_I14_parts_of_a_result_in_another_order_are_not_put_together(place, tmp_path):
    with managed(place, impostors.honest) as (manager, launcher):
        task = manager.add_task(Task(stay, tmp_path / "up"))
        tick_until(manager, (tmp_path / "up").exists)
        [order] = launcher.orders.values()
        credential = Credential(order.attempt, order.secret, task.id)
        signature = credential.sign(worker.label(1, 2) + b"second")
        say(manager, (order.attempt, 1, 2, b"second", signature), name="doorman.result")
        assert manager.refused == {"result not signed by the attempt's process": 1}
        assert task.state is State.RUNNING


# -- I15: the task's code runs before anybody knows whose process it is --------------------------------------------


@pytest.mark.parametrize("launcher", ["zygote(impostors.honest)", "CommandLauncher()"])
def test_I15_a_manager_that_dies_before_it_says_go_leaves_nothing_that_runs(place, tmp_path, launcher):
    script = f"""
import impostors
from pathlib import Path
from doorman import ProcessManager, Task
from doorman.launcher import Launched
from doorman.launcher.command import CommandLauncher
from impostors import Delayed, marked, zygote
launcher = Delayed({launcher})
launcher.holds = lambda event: isinstance(event, Launched)
with ProcessManager({place!r}, launcher=launcher) as manager:
    manager.server.add_listener("doorman.hello", lambda words: print(words["pid"], flush=True))
    manager.add_task(Task(marked, Path({str(tmp_path)!r}) / "ran"))
    manager.run()
"""
    with (
        subprocess.Popen(
            [sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": SUPPORT}, stdout=subprocess.PIPE, text=True
        ) as owner,
        Process.open(int(owner.stdout.readline())) as process,
    ):
        assert process.alive()
        owner.kill()
        assert process.wait(DEADLINE)
    assert not (tmp_path / "ran").exists()


def test_I15_a_go_that_the_manager_has_not_signed_is_no_go(place, tmp_path):
    """Somebody else's server is where the manager was: it knows all but the secret."""
    credential, other = Credential("a", task="1"), Credential("b", task="1")
    with Server(place) as server, zygote(impostors.honest) as launcher:

        def answer(event: Event) -> None:
            for go in (("a", b""), ("a", "text"), ("a",), ("a", credential.sign(b"die")), ("b", other.sign(b"go"))):
                event.sender.emit("doorman.go", *go)
            event.sender.emit("doorman.go", "a", other.sign(b"go"))
            event.sender.emit("doorman.die", "a", credential.sign(b"die"))

        server.add_listener("doorman.hello", answer, pass_event=True)
        call = pickle.dumps((marked, (tmp_path / "ran",), {}))
        work = worker.Work(pickle.dumps(server.location), "1", "marked", 1, call)
        launcher.launch(Order("a", credential.secret, msgspec.msgpack.encode(work)))
        events = []
        with ticked(server):
            events = until_over(launcher)
        assert events[-1].exit_code == worker.NOT_ADMITTED
        assert not (tmp_path / "ran").exists()


# -- I22: a fork inherits the secret and the connection ------------------------------------------------------------


def fork_and_return() -> tuple[str, int]:
    """Return twice: in this process, and in a fork of it."""
    child = os.fork()
    if not child:
        return "the fork's word", 0
    return "the task's word", os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def secrets_of_family() -> tuple[bytes | None, bytes]:
    """Return the secret as a task can see it, and as a fork of it can."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        os.write(writer, secret_in_sight() or b"forgotten")
        os._exit(0)
    os.waitpid(child, 0)
    seen = os.read(reader, 64)
    os.close(reader)
    os.close(writer)
    return secret_in_sight(), seen


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
        assert "the secret of attempt" in twice.output[1].read_text()
        own, forks = family.result(DEADLINE)
        assert (len(own), forks) == (32, b"forgotten")
        assert program.result(DEADLINE) == ["0", "1", "2", "3"]  # the last is the listing's own
        assert not manager.refused
