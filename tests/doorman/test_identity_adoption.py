"""The catalogue of identity failures: a manager that is restarted. Entry I16, forced over each transport."""

from __future__ import annotations

import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from chores import wait_for_go
from internals import attempt_of
from managing import say, tick_until
from mortals import fixed, held, inode_of, slain
from waiting import DEADLINE, wait_until

from doorman import Journal, ProcessManager, State, Task
from doorman.errors import TaskDetached, WorkerDied
from doorman.identity import Identity, Refusal, boot_id
from doorman.journal.recorder import Recorder
from doorman.journal.records import ProcessLaunched, ProcessProven, Started, folded
from doorman.process import Process
from remit import Location

DETACHED = """
manager = ProcessManager(location, journal=folder / "journal")
task = manager.add_task(Task(chores.obey, folder / "up", detach=True))
until((folder / "up").exists)
say(task.identity.pid, manager._launcher._launcher.pid)
forever()
"""


@pytest.fixture
def place(short_path) -> Location:
    return Location(f"unix://{short_path}/manager")


@contextmanager
def restarted(place: Location, folder: Path, **settings: Any) -> Iterator[ProcessManager]:
    with ProcessManager(place, journal=folder / "journal", grace=1.0, **settings) as manager:
        yield manager


def comes_back(manager: ProcessManager, task: Task) -> None:
    """Tick until the process of a detached task has proven itself anew."""
    attempt = attempt_of(manager, task)
    tick_until(manager, lambda: attempt.sender)


# -- it is believed ------------------------------------------------------------------------------------------------


def test_I16_a_restarted_manager_goes_on_with_what_was_detached(crossing_location, tmp_path):
    place = fixed(crossing_location)
    pid, zygote = map(int, slain(DETACHED, place, tmp_path))
    with held(pid) as process, held(zygote) as old_zygote, restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert (task.state, task.identity.pid, task.identity.inode) == (State.RUNNING, pid, process.inode)
        assert manager.running == (task,)
        comes_back(manager, task)
        manager.emit_to(task, "word", "hello")
        manager.emit_to(task, "stop")
        assert task.result(DEADLINE) == ["hello"]
        assert (task.attempt, task.exit_code) == (1, 0), "its exit code is the old zygote's to know"
        assert process.wait(DEADLINE)
        assert old_zygote.wait(DEADLINE), "a zygote ends with the last of its detached children"
        assert not manager.refused
    assert list((tmp_path / "journal.d").iterdir()) == []
    [finished] = Journal.read(tmp_path / "journal")
    assert finished.result() == ["hello"]


def test_I16_it_outlives_one_manager_after_the_other(place, tmp_path):
    [pid, _] = slain(DETACHED, place, tmp_path)
    again = """
manager = ProcessManager(location, journal=folder / "journal")
[task] = manager.recovered
until(lambda: attempt_of(manager, task).sender)
say(task.identity.pid)
"""
    with held(int(pid)):
        for _ in range(3):
            assert slain(again, place, tmp_path) == [pid]
        with restarted(place, tmp_path) as manager:
            [task] = manager.recovered
            comes_back(manager, task)
            manager.emit_to(task, "stop")
            assert task.result(DEADLINE) == []


def test_I16_a_result_told_to_nobody_is_told_to_the_next_manager(crossing_location, tmp_path):
    """The process has ended its work, and waits for somebody to take the result."""
    place = fixed(crossing_location)
    code = DETACHED.replace("chores.obey", "chores.wait_for_go")
    pid, _ = map(int, slain(code, place, tmp_path))
    with held(pid):
        (tmp_path / "go").touch()
        wait_until(lambda: list(tmp_path.glob("journal.d/*.result")))
        with restarted(place, tmp_path) as manager:
            [task] = manager.recovered
            assert task.result(DEADLINE) == pid
            assert not manager.refused


def test_I16_a_process_that_has_ended_meanwhile_has_left_its_result(place, tmp_path):
    code = """
launcher = impostors.zygote(impostors.curt)
manager = ProcessManager(location, launcher=launcher, journal=folder / "journal")
tasks = [
    Task(chores.wait_for_go, folder / "a", detach=True),
    Task.command(["sh", "-c", 'touch b; while ! test -e go; do sleep 0.01; done; exit 3'], cwd=folder, detach=True),
]
for task in tasks:
    manager.add_task(task)
until(lambda: (folder / "a").exists() and (folder / "b").exists())
say(*(task.identity.pid for task in tasks))
forever()
"""
    pids = [int(pid) for pid in slain(code, place, tmp_path)]
    with held(pids[0]) as first, held(pids[1]) as second:
        (tmp_path / "go").touch()
        assert first.wait(DEADLINE)
        assert second.wait(DEADLINE)
        wait_until(lambda: len(list(tmp_path.glob("journal.d/*.end"))) == 2)
    with restarted(place, tmp_path) as manager:
        function, command = manager.recovered
        assert (function.state, function.result(), function.exit_code) == (State.DONE, pids[0], 0)
        assert (command.state, command.exit_code) == (State.FAILED, 3)
        with pytest.raises(WorkerDied, match="exit code 3"):
            command.result()
        assert not manager.busy


def test_I16_a_command_is_known_by_the_kernels_word_alone(place, tmp_path):
    code = """
manager = ProcessManager(location, journal=folder / "journal")
script = "touch up; while ! test -e go; do sleep 0.01; done; exit 4"
wrapper = ("sh", "-c", '"$@"; exit $?', "sh")
task = manager.add_task(Task.command(["sh", "-c", script], detach=True, wrapper=wrapper, cwd=folder))
until((folder / "up").exists)
say(task.identity.pid)
forever()
"""
    [pid] = slain(code, place, tmp_path)
    with held(int(pid)), restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert (task.state, task.identity.pid) == (State.RUNNING, int(pid))
        (tmp_path / "go").touch()
        with pytest.raises(WorkerDied, match="exit code 4"):
            task.result(DEADLINE)


def test_I16_a_worker_that_is_a_program_of_its_own_is_taken_over_too(place, tmp_path):
    code = """
from doorman.launcher.command import CommandLauncher
manager = ProcessManager(location, launcher=CommandLauncher(), journal=folder / "journal")
task = manager.add_task(Task(chores.wait_for_go, folder / "up", detach=True))
until((folder / "up").exists)
say(task.identity.pid)
forever()
"""
    [pid] = slain(code, place, tmp_path)
    with held(int(pid)), restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert task.state is State.RUNNING
        (tmp_path / "go").touch()
        assert task.result(DEADLINE) == int(pid)
        assert task.exit_code is None, "nobody was there to know it"


# -- it is stopped -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["cancel", "expiry"])
def test_I16_what_was_taken_over_is_stopped_like_any_other(place, tmp_path, how):
    policy = "detach=True" if how == "cancel" else "detach=True, expires_in=0.2"
    pid, _ = map(int, slain(DETACHED.replace("detach=True", policy), place, tmp_path))
    with held(pid) as process, restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        if how == "cancel":
            assert manager.cancel(task)
        manager.run(DEADLINE)
        assert task.state == {"cancel": "cancelled", "expiry": "expired"}[how]
        assert process.wait(0)
        assert task.signal == signal.SIGTERM


def test_I16_what_was_being_stopped_is_stopped(place, tmp_path):
    code = """
manager = ProcessManager(location, journal=folder / "journal", grace=1000)
task = manager.add_task(Task(chores.stay_stubbornly, folder / "up", detach=True))
until((folder / "up").exists)
manager.cancel(task)
say(task.identity.pid)
"""
    [pid] = slain(code, place, tmp_path)
    with held(int(pid)) as process, restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        manager.run(DEADLINE)
        assert (task.state, task.signal) == (State.CANCELLED, signal.SIGKILL)
        assert process.wait(0)


# -- somebody else is not ------------------------------------------------------------------------------------------


OVERHEARD = DETACHED.replace(
    "task = manager",
    """import json
manager.server.add_listener("doorman.hello", lambda words: (folder / "hello").write_text(json.dumps(words)))
task = manager""",
)


def test_I16_an_old_hello_that_was_overheard_is_worth_nothing(crossing_location, tmp_path):
    import json

    place = fixed(crossing_location)
    pid, _ = map(int, slain(OVERHEARD, place, tmp_path))
    old = json.loads((tmp_path / "hello").read_text())
    with held(pid) as process:
        process.signal(signal.SIGSTOP)
        with restarted(place, tmp_path) as manager:
            [task] = manager.recovered
            attempt = attempt_of(manager, task)
            say(manager, old)
            say(
                manager, (old, b"s" * 32), (old,), (None, None), (old, "s"), ({"attempt": 3}, b""), name="doorman.again"
            )
            assert attempt.sender is None
            assert manager.refused == {
                Refusal.REPLAYED.value: 2,
                Refusal.MALFORMED.value: 2,
                Refusal.WRONG_ATTEMPT.value: 1,
            }
            answers: list[tuple[Any, ...]] = []
            manager.server.add_listener("doorman.again", lambda *words: answers.append(words))
            process.signal(signal.SIGCONT)
            comes_back(manager, task)
            true = attempt.sender.id
            say(manager, answers[0], name="doorman.again")
            assert attempt.sender.id == true, "its true answer, said by somebody else"
            assert manager.refused[Refusal.REPLAYED.value] == 3
            manager.emit_to(task, "stop")
            assert task.result(DEADLINE) == []


@pytest.fixture
def stranger() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["sleep", "1000"]) as stranger:
        yield stranger
        stranger.kill()


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "not detached"])
@pytest.mark.parametrize("elsewhen", [False, True], ids=["this boot", "another boot"])
def test_I16_a_stranger_with_the_number_is_neither_believed_nor_signalled(place, tmp_path, stranger, detach, elsewhen):
    with Process.open(stranger.pid) as process, subprocess.Popen(["true"]) as ended, Process.open(ended.pid) as another:
        boot = "another" if elsewhen else boot_id()
        inode = process.inode if elsewhen else another.inode
        own = Identity("node", boot, "pid:[1]", stranger.pid, inode, process.start_time, "1.1-ab")
    with Journal(tmp_path / "journal") as journal:
        Recorder(journal).added(Task(print), b"")
        [added] = [entry.added for entry in folded(_records(tmp_path / "journal")).values()]
        journal.append(
            Started(added.task, "1.1-ab", 1, b"s" * 32, detach, boot),
            ProcessLaunched(added.task, stranger.pid, inode),
            ProcessProven(added.task, own, time.monotonic()),
        )
    with restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert task.state is State.LOST
        with pytest.raises(WorkerDied, match="while there was none"):
            task.result()
        assert not manager.busy
    assert stranger.poll() is None


# -- a manager that dies at the worst moment -----------------------------------------------------------------------


@pytest.mark.parametrize("detach", [True, False], ids=["detached", "not detached"])
def test_I16_what_was_never_told_to_go_begins_anew_whatever_its_retries(place, tmp_path, detach):
    """The manager dies when a process has proven itself, and neither the journal nor the process has heard of it."""
    code = f"""
from doorman._scheduler.lifecycle import JournalEntry
from doorman.journal.recorder import Recorder
write = Recorder.write
def slain(self, attempt, action):
    if action.entry is JournalEntry.PROVEN:
        say(attempt.identity.pid)
        os.kill(os.getpid(), 9)
    write(self, attempt, action)
Recorder.write = slain
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(impostors.marked, folder / "ran", detach={detach}))
forever()
"""
    [pid] = slain(code, place, tmp_path)
    with restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert task.state is State.WAITING
        assert task.result(DEADLINE) == "ran"
        assert task.attempt == 1
        assert task.identity.pid != int(pid)
    assert len((tmp_path / "ran").read_text().splitlines()) == 1
    wait_until(lambda: inode_of(int(pid)) is None)


def test_I16_a_manager_that_dies_before_its_go_leaves_it_to_the_next(place, tmp_path):
    """The journal says that the process is proven; it was not told, and says hello to the next manager."""
    code = """
from doorman._scheduler.handshake import Handshake
Handshake.reply = lambda self, credential, word, sender: (say(word), os.kill(os.getpid(), 9))
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(impostors.marked, folder / "ran", detach=True))
forever()
"""
    assert slain(code, place, tmp_path) == ["go"]
    with restarted(place, tmp_path) as manager:
        [task] = manager.recovered
        assert task.state is State.RUNNING
        assert task.result(DEADLINE) == "ran"
        assert task.attempt == 1
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


# -- kernels whose processes have no inodes ------------------------------------------------------------------------


OLD = """
from doorman import process
process.has_pidfd_inodes = lambda: False
launcher = impostors.zygote(impostors.of_old)
manager = ProcessManager(location, launcher=launcher, journal=folder / "journal")
""" + DETACHED.split("\n", 2)[2]


@pytest.fixture
def old(monkeypatch) -> None:
    monkeypatch.setattr("doorman.process.has_pidfd_inodes", lambda: False)


def test_I16_without_inodes_it_has_to_prove_itself_first(place, tmp_path, old):
    pid, _ = map(int, slain(OLD, place, tmp_path))
    with held(pid) as process:
        process.signal(signal.SIGSTOP)
        with restarted(place, tmp_path) as manager:
            [task] = manager.recovered
            assert (task.state, task.identity) == (State.PROVING, None)
            process.signal(signal.SIGCONT)
            comes_back(manager, task)
            assert (task.state, task.identity.pid) == (State.RUNNING, pid)
            assert task.identity.strength in ("peer-pidfd", "start-time")
            manager.emit_to(task, "stop")
            assert task.result(DEADLINE) == []


def test_I16_without_inodes_what_does_not_prove_itself_is_lost_and_left_alone(place, tmp_path, old):
    pid, _ = map(int, slain(OLD, place, tmp_path))
    with held(pid) as process:
        process.signal(signal.SIGSTOP)
        with restarted(place, tmp_path, hello_timeout=0.3) as manager:
            [task] = manager.recovered
            manager.run(DEADLINE)
            assert task.state is State.LOST
        assert process.alive()


# -- a manager that is left ----------------------------------------------------------------------------------------


def test_I16_leaving_a_manager_leaves_what_is_detached_to_the_next(place, tmp_path):
    with restarted(place, tmp_path) as manager:
        detached = manager.add_task(Task(wait_for_go, tmp_path / "up", detach=True))
        tick_until(manager, (tmp_path / "up").exists)
        waiting = manager.add_task(Task(pow, 2, 3))
    assert (detached.state, waiting.state) == (State.LOST, State.CANCELLED)
    with pytest.raises(TaskDetached, match="open its journal to take it over"):
        detached.result()
    with held(detached.identity.pid), restarted(place, tmp_path) as manager:
        (tmp_path / "go").touch()
        assert [task.result(DEADLINE) for task in manager.recovered] == [detached.identity.pid, 8]


def _records(path: Path) -> list[Any]:
    from doorman.journal.journal import _records

    return _records(path)[0]
