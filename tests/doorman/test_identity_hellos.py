"""The catalogue of identity failures: when words come. Entries I1 and I12 to I15, each forced."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path

import impostors
import msgspec
import pytest
from chores import sign_in, stay
from impostors import hellos_lost, marked, zygote
from internals import attempt_of
from launching import abandoned, fifo, opened, until_over
from managing import managed, overheard, say, tick_until
from ticking import ticked
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman._scheduler.lifecycle import EARLY
from doorman._worker import main as worker
from doorman._worker.signed_channel import CHUNK_BYTES, RESULT, TASK_REPORTS, SignedSender
from doorman.errors import WorkerDied
from doorman.identity import Credential, Refusal
from doorman.launcher import Exited, Launched, Order
from doorman.launcher.command import CommandLauncher
from doorman.process import Process
from remit import Event, Server

SUPPORT = str(Path(__file__).parents[1] / "support")


@pytest.fixture
def place(short_path) -> str:
    return f"unix://{short_path}/manager"


# -- I1: two tasks swap processes at a mass start ------------------------------------------------------------------


def test_I01_hellos_in_any_order_give_each_task_its_own_process(crossing_location, tmp_path):
    """Each process says hello at a moment of its own, up to a tenth of a second late: no order tells whose it is."""
    order: list[str] = []
    launcher = zygote(impostors.shuffled, crossing_location.scheme)
    with ProcessManager(crossing_location, launcher=launcher) as manager:
        manager.server.add_listener("doorman.hello", lambda words: order.append(words["task"]))
        tasks = [manager.add_task(Task(sign_in, tmp_path / str(number))) for number in range(48)]
        manager.run(DEADLINE)
        assert [task.exception(0) for task in tasks] == [None] * 48
        assert order != sorted(order, key=int), "no hello overtook another: the test proves nothing"
        written = [tuple(map(int, (tmp_path / str(number)).read_text().split()[:2])) for number in range(48)]
        assert [(task.identity.pid, task.identity.inode) for task in tasks] == written
        assert len({inode for _, inode in written}) == 48
        assert not manager.refused


# -- I12: a hello is lost ------------------------------------------------------------------------------------------


def test_I12_a_hello_that_was_lost_is_said_again(place):
    with managed(place, impostors.losing) as (manager, _):
        assert manager.add_task(Task(hellos_lost)).result(DEADLINE) == impostors.LOST


def test_I12_hellos_pushed_out_by_a_flood_are_said_again(place, tmp_path):
    """Before the launcher has told of the process, anybody may say hello for it; few of these hellos are kept."""
    with managed(place, impostors.insistent) as (manager, launcher):
        words = overheard(manager)
        launcher.holds = lambda event: isinstance(event, Launched)
        task = manager.add_task(Task(marked, tmp_path / "ran"))
        tick_until(manager, lambda: words)
        say(manager, *[words[0] | {"proof": f"{number}"} for number in range(50)])
        launcher.holds = lambda event: False
        assert task.result(DEADLINE) == "ran"
        assert 0 < manager.refused[Refusal.FORGED.value] <= EARLY


@pytest.mark.parametrize("fault", ["loss=0.05&delay=0.02", "duplication=0.5&reorder=0.5", "cut=0.05"])
def test_I12_a_bad_line_delays_a_proof_and_spoils_none(short_path, tmp_path, fault):
    with ProcessManager(f"chaos+unix://{short_path}/manager?seed=7&{fault}") as manager:
        tasks = [manager.add_task(Task(sign_in, tmp_path / str(number))) for number in range(4)]
        manager.run(DEADLINE)
        written = [tuple(map(int, (tmp_path / str(number)).read_text().split()[:2])) for number in range(4)]
        assert [task.exception(0) for task in tasks] == [None] * 4
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
    """A wrapper hides its first worker as a daemon, which no signal finds before it has said hello."""
    hidden = f'exec 9> {tmp_path}/alive; printf ! >&9; while ! test -e {tmp_path}/gate; do sleep 0.01; done; exec "$@"'
    hide = f'mkdir {tmp_path}/first || exec "$@"; (setsid sh -c "$0" sh "$@" &); sleep 1000'
    launcher = CommandLauncher(("sh", "-c", hide, hidden))
    patience = 0.2 if end == "too slow" else DEADLINE
    with (
        fifo(tmp_path / "alive") as alive,
        ProcessManager(place, launcher=launcher, hello_timeout=patience, grace=0.5) as manager,
    ):
        task = manager.add_task(Task(marked, tmp_path / "ran", retries=int(end == "tried again")))
        tick_until(manager, lambda: task.state is State.PROVING)
        assert opened(alive)
        if end == "cancelled":
            manager.cancel(task)
        elif end == "tried again":
            attempt_of(manager, task).launched.signal_group(signal.SIGKILL)
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
        assert manager.refused == {"report of a process that has not proven itself": 1}


def test_I14_parts_of_a_result_in_another_order_are_not_put_together(place, tmp_path):
    with managed(place, impostors.honest) as (manager, launcher):
        task = manager.add_task(Task(stay, tmp_path / "up"))
        tick_until(manager, (tmp_path / "up").exists)
        [order] = launcher.orders.values()
        credential = Credential(order.attempt, order.secret, task.id)
        sent: list[tuple[int, bytes, bytes]] = []
        sender = SignedSender(credential, TASK_REPORTS, lambda *parts: sent.append(parts))
        sender.send([(0, RESULT, bytes(2 * CHUNK_BYTES))])
        say(manager, (order.attempt, *sent[1]), name="doorman.report")
        assert manager.refused == {"report not signed by the attempt's process": 1}
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
    with Server(place) as server, zygote(impostors.impatient) as launcher:

        def answer(event: Event) -> None:
            for go in (("a", b""), ("a", "text"), ("a",), ("a", credential.sign(b"die")), ("b", other.sign(b"go"))):
                event.sender.emit("doorman.go", *go)
            event.sender.emit("doorman.go", "a", other.sign(b"go"))

        server.add_listener("doorman.hello", answer, pass_event=True)
        call = pickle.dumps((marked, (tmp_path / "ran",), {}))
        work = worker.WorkSpec(pickle.dumps(server.location), "1", "marked", 1, call)
        launcher.launch(Order("a", credential.secret, msgspec.msgpack.encode(work)))
        events = []
        with ticked(server):
            events = until_over(launcher)
        assert events[-1].exit_code == worker.EXIT_NOT_ADMITTED
        assert not (tmp_path / "ran").exists()
