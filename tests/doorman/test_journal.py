"""The journal as a file: what is written is read again, whatever has happened to it meanwhile."""

from __future__ import annotations

import os
import pickle
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from chores import die, fail_until, stay
from managing import tick_until
from mortals import slain
from waiting import DEADLINE

from doorman import Backoff, Intensity, Journal, Limits, ProcessManager, Rule, State, Task
from doorman.errors import (
    DependencyFailed,
    JournalError,
    JournalInUse,
    RestartedTooOften,
    TaskCancelled,
    TaskExpired,
    WorkerDied,
)
from doorman.journal.records import Added, Again, Ended, Entry, Opened, Record, Started, decoded, encoded, folded
from remit import Location


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


def added(task: str, call: bytes = b"call") -> Added:
    return Added(task, f"name of {task}", (), pickle.dumps({}), call)


def done(task: str, value: object = None) -> Ended:
    return Ended(task, State.DONE, value=pickle.dumps(value))


def written(path: Path, *records: Record) -> None:
    with Journal(path) as journal:
        journal.append(*records)


def tasks(path: Path) -> list[str]:
    with Journal(path) as journal:
        return [entry.added.task for entry in journal.entries()]


# -- records -------------------------------------------------------------------------------------------------------


def test_a_record_is_a_line_and_is_read_again():
    line = encoded(added("1", bytes(range(256))))
    assert line.count(b"\n") == 1
    assert decoded(line) == added("1", bytes(range(256)))


@pytest.mark.parametrize("damage", ["", "\n", "no record\n", "00000000 {}\n", "flipped", "torn"])
def test_what_is_no_record_is_none(damage):
    line = encoded(added("1"))
    damaged = {"flipped": line.replace(b"name", b"mane"), "torn": line[:-1]}.get(damage, damage.encode())
    assert decoded(damaged) is None


def test_a_line_with_the_right_sum_that_says_nothing_known_is_none():
    import zlib

    data = b'{"is":"forgotten"}'
    assert decoded(b"%08x %s\n" % (zlib.crc32(data), data)) is None


def test_a_folded_entry_says_the_same_in_fewer_records():
    started = Started("1", "1.2-ab", 2, b"secret", False, "boot")
    records = [added("1"), Started("1", "1.1-ab", 1, b"secret", False, "boot"), Again("1", 1), started]
    entry = folded(records)["1"]
    assert list(entry.records()) == [added("1"), started]
    assert folded(entry.records())["1"] == entry
    ended = folded([*records, done("1")])["1"]
    assert [type(record) for record in ended.records()] == [Added, Again, Ended]
    assert folded(ended.records())["1"].number == 2


# -- the file ------------------------------------------------------------------------------------------------------


def test_what_was_written_is_there_in_its_order(path):
    written(path, added("2"), added("1"), done("2"))
    with Journal(path) as journal:
        entries = journal.entries()
        assert [entry.added.task for entry in entries] == ["2", "1"]
        assert journal.entries() == ()
    assert entries[0].ended is not None
    assert entries[0].added.call == b"", "nobody needs it any more"
    assert entries[1] == Entry(added("1"))


def test_only_its_owner_can_read_it(path):
    written(path, added("1"))
    path.chmod(0o644)
    written(path, added("2"))
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert tasks(path) == ["1", "2"]


@pytest.mark.parametrize("kept", [1, 10, -2, -1])
def test_a_torn_last_record_is_forgotten(path, kept):
    written(path, added("1"), added("2"))
    last = encoded(added("3"))
    with path.open("ab") as file:
        file.write(last[:kept])
    with Journal(path) as journal:
        assert journal.damaged == 0
        journal.append(added("4"))
    assert tasks(path) == ["1", "2", "4"]


def test_garbage_is_passed_over_counted_and_kept_for_inspection(path, caplog):
    written(path, added("1"), added("2"), added("3"))
    lines = path.read_bytes().splitlines(keepends=True)
    spoilt = b"".join([*lines[:2], b"\x00\xffgarbage\n", lines[2].replace(b"name", b"mane"), *lines[3:]])
    path.write_bytes(spoilt)
    with Journal(path) as journal:
        assert journal.damaged == 2
        assert [entry.added.task for entry in journal.entries()] == ["1", "3"]
    assert path.with_name("journal.damaged").read_bytes() == spoilt
    assert "2 damaged records" in caplog.text
    assert tasks(path) == ["1", "3"]


@pytest.mark.parametrize("text", ["not a journal", "not a journal\n", "[tool]\nname = 1\n"])
def test_a_file_that_is_no_journal_is_left_alone(path, text):
    path.write_text(text)
    with pytest.raises(JournalError, match="is not a journal: choose another path"):
        Journal(path)
    assert path.read_text() == text
    with pytest.raises(JournalError, match="is not a journal"):
        list(Journal.read(path))


def test_a_journal_of_a_later_version_is_not_read(path):
    path.write_bytes(encoded(Opened(99, 1)))
    with pytest.raises(JournalError, match="version 99"):
        Journal(path)


def test_one_that_cannot_be_made_says_why(tmp_path):
    with pytest.raises(JournalError, match="create its folder"):
        Journal(tmp_path / "no" / "folder" / "journal")
    with pytest.raises(ValueError, match="survives is one of manager, machine"):
        Journal(tmp_path / "journal", survives="fire")


def test_a_link_to_it_stays_a_link(tmp_path, path):
    written(path, added("1"))
    link = tmp_path / "link"
    link.symlink_to(path)
    written(link, added("2"))
    assert link.is_symlink()
    assert tasks(path) == ["1", "2"]


@pytest.mark.parametrize("survives", ["manager", "machine"])
def test_each_policy_writes_before_it_returns(path, survives):
    with Journal(path, survives=survives) as journal:
        journal.append(added("1"))
        assert encoded(added("1")) in path.read_bytes()


def test_a_full_disk_is_told_and_leaves_the_journal_whole(path, monkeypatch):
    with Journal(path) as journal:
        journal.append(added("1"))
        write = os.write

        def half(descriptor: int, data: bytes) -> int:
            if len(data) < 20:
                raise OSError(28, "No space left on device")
            return write(descriptor, data[: len(data) - 10])

        with monkeypatch.context() as patch:
            patch.setattr(os, "write", half)
            with pytest.raises(JournalError, match="No space left"):
                journal.append(added("2"))
        with pytest.raises(JournalError, match="No space left"):
            journal.append(added("3"))
    assert tasks(path) == ["1"]


def test_after_its_end_nothing_can_be_written(path):
    with Journal(path) as journal:
        pass
    journal.close()
    with pytest.raises(JournalError, match="closed"):
        journal.append(added("1"))


# -- one manager at a time -----------------------------------------------------------------------------------------


def test_two_managers_never_share_one(path):
    with ProcessManager(journal=path), pytest.raises(JournalInUse, match=r"another manager writes to .*: end it, or"):
        ProcessManager(journal=path)
    with ProcessManager(journal=path):
        pass


def test_a_manager_that_was_killed_leaves_it_free(path):
    code = "import os, sys; from doorman import Journal; j = Journal(sys.argv[1]); os.kill(os.getpid(), 9)"
    assert subprocess.run([sys.executable, "-c", code, str(path)], check=False).returncode == -9
    with Journal(path):
        pass


def test_a_fork_of_a_dead_manager_does_not_keep_it(path):
    code = """
import os, sys, time
from doorman import Journal
journal = Journal(sys.argv[1])
if not os.fork():
    print("forked", flush=True)
    sys.stdin.read()
    os._exit(0)
os.kill(os.getpid(), 9)
"""
    command = [sys.executable, "-c", code, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as manager:
        assert manager.stdout is not None
        assert manager.stdout.readline() == b"forked\n"
        assert manager.wait() == -9
        with Journal(path):
            pass


def test_a_manager_that_cannot_begin_leaves_it_free(path, tmp_path):
    for _ in range(2):
        with pytest.raises(ValueError, match="does not reach other processes"):
            ProcessManager("memory://here", journal=path)


def test_a_manager_that_cannot_go_on_from_it_leaves_all_free(path, short_path, monkeypatch):
    def full(*_: object) -> None:
        raise JournalError("No space left on device")

    place = f"unix://{short_path}/m"
    with monkeypatch.context() as patch:
        patch.setattr("doorman.journal.recovery.Recovery.run", full)
        with pytest.raises(JournalError) as failed:
            ProcessManager(place, journal=path)
    with ProcessManager(place, journal=path) as manager:
        assert manager.add_task(Task(pow, 2, 3)).result(DEADLINE) == 8
    assert failed.traceback, "held until here, and with it all that the first had opened"


def test_it_can_be_read_while_a_manager_writes(path):
    with Journal(path) as journal:
        journal.append(added("1"), added("2"), done("1", 7))
        [finished] = Journal.read(path)
        assert (finished.id, finished.name, finished.state, finished.result()) == ("1", "name of 1", "done", 7)


# -- size ----------------------------------------------------------------------------------------------------------


def test_it_is_written_anew_before_it_grows_without_bound(path, monkeypatch):
    monkeypatch.setattr("doorman.journal.journal.ROTATE", 10_000)
    with Journal(path, keep=5) as journal:
        for number in range(1000):
            journal.append(added(f"{number}", b"c" * 100), done(f"{number}"))
        assert path.stat().st_size < 30_000
        journal.append(added("last"))
    assert tasks(path)[-1] == "last"


def test_the_oldest_that_have_ended_are_forgotten_and_none_that_waits(path):
    written(path, added("w"), *(added(f"{n}") for n in range(10)), *(done(f"{n}") for n in range(10)))
    with Journal(path, keep=3) as journal:
        assert [entry.added.task for entry in journal.entries()] == ["w", "7", "8", "9"]


def test_ten_thousand_tasks_are_no_burden(path, tmp_path):
    """Ten thousand tasks wait in a manager that is killed; the next one has them all."""
    code = """
import os, sys
from doorman import ProcessManager, Task
manager = ProcessManager(f"unix://{sys.argv[2]}/m", journal=sys.argv[1])
for number in range(10_000):
    manager.add_task(Task(pow, number, 2, name=f"{number}"))
os.kill(os.getpid(), 9)
"""
    assert subprocess.run([sys.executable, "-c", code, path, tmp_path], check=False, timeout=60).returncode == -9
    with ProcessManager(f"unix://{tmp_path}/m", journal=path) as manager:
        assert [task.name for task in manager.recovered] == [f"{number}" for number in range(10_000)]
        assert manager.waiting == manager.recovered
        manager.stop()
    assert {finished.state for finished in Journal.read(path)} == {State.CANCELLED}


# -- what a manager writes -----------------------------------------------------------------------------------------


def test_a_task_is_in_it_before_add_task_returns(path):
    with ProcessManager(journal=path) as manager:
        manager.add_task(Task(pow, 2, 3, name="eight"))
        assert b'"name":"eight"' in path.read_bytes()


def recovered(path: Path, place: Location) -> dict[str, Task]:
    with ProcessManager(place, journal=path) as manager:
        manager.run(DEADLINE)
        return {task.name: task for task in manager.recovered}


def test_what_has_ended_stays_as_it_ended(path, short_path):
    place = Location(f"unix://{short_path}/m")
    with ProcessManager(place, journal=path) as manager:
        for name, task in {
            "raised": Task(int, "x", name="raised"),
            "cancelled": Task(stay, name="cancelled"),
            "expired": Task(stay, name="expired", expires_in=0.1),
            "died": Task(die, 9, name="died"),
            "tried": Task(fail_until, path.with_name("tries"), 3, name="tried", retries=5),
            "command": Task.command(["true"], name="command"),
            "waiting": Task(pow, 2, 3, name="waiting", can_run=lambda: False),
        }.items():
            manager.add_task(task)
            assert task.name == name
        tick_until(manager, lambda: task_of(manager, "cancelled").state is State.RUNNING)
        manager.cancel(task_of(manager, "cancelled"))
        manager.cancel(task_of(manager, "waiting"))
        manager.run(DEADLINE)
    for _ in range(2):
        tasks = recovered(path, place)
        states = {name: str(task.state) for name, task in tasks.items()}
        assert states == {
            "raised": "failed",
            "cancelled": "cancelled",
            "expired": "expired",
            "died": "failed",
            "tried": "done",
            "command": "done",
            "waiting": "cancelled",
        }
        assert (tasks["tried"].result(), tasks["tried"].attempt) == (3, 3)
        assert (tasks["command"].result(), tasks["command"].exit_code) == (0, 0)
        for name, error in {"raised": ValueError, "cancelled": TaskCancelled, "expired": TaskExpired}.items():
            assert isinstance(tasks[name].exception(), error)
        assert isinstance(tasks["waiting"].exception(), TaskCancelled)
        assert (tasks["died"].exception().signal, tasks["died"].signal) == (9, 9)
        assert tasks["died"].identity.pid == tasks["died"].exception().pid


def task_of(manager: ProcessManager, name: str) -> Task:
    return next(task for task in (*manager.running, *manager.waiting) if task.name == name)


def test_what_had_told_its_result_ends_with_it(path, short_path, tmp_path):
    """The manager dies after it has confirmed a result, and before it has ended the task."""
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman.journal.recorder import Recorder
Recorder.ended = lambda self, task, *_: (say("now"), os.kill(os.getpid(), 9))
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(impostors.marked, folder / "ran", name="task", retries=3))
forever()
"""
    slain(code, place, tmp_path)
    task = recovered(path, place)["task"]
    assert (task.result(), task.attempt, task.state) == ("ran", 1, "done")
    assert len((tmp_path / "ran").read_text().splitlines()) == 1


def test_what_was_running_is_tried_again_if_it_may_be(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
manager = ProcessManager(location, journal=folder / "journal")
for retries in (0, 1):
    name = f"{retries} retries"
    manager.add_task(Task(chores.wait_for_go, folder / name, name=name, retries=retries))
until(lambda: all((folder / f"{retries} retries").exists() for retries in (0, 1)))
say("up")
"""
    slain(code, place, tmp_path)
    before = (tmp_path / "1 retries").read_text()
    (tmp_path / "go").touch()
    lost, again = recovered(path, place).values()
    assert (lost.state, again.state, again.attempt) == (State.LOST, State.DONE, 2)
    assert isinstance(lost.exception(), WorkerDied)
    assert f"{again.result()}" != before


def test_a_task_that_is_recovered_has_the_policy_that_it_was_added_with(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman import Backoff, Intensity, Limits
manager = ProcessManager(location, journal=folder / "journal")
first = manager.add_task(Task(chores.stay, name="first", priority=7, limits=Limits(nice=3, umask=0o27), expires_in=9.0))
manager.add_task(Task(chores.stay, name="second", after=[first], retries=2, backoff=Backoff(first=0.25, jitter=0.0)))
often = Intensity(restarts=2, seconds=3600.0)
manager.add_task(
    Task(chores.die, 9, name="third", restart="permanent", intensity=often, backoff=Backoff(first=0), wrapper=["nice"])
)
say("up")
"""
    slain(code, place, tmp_path)
    with ProcessManager(place, journal=path) as manager:
        first, second, third = manager.recovered
        assert (first.priority, first.expires_in, first.limits) == (7, 9.0, Limits(nice=3, umask=0o27))
        assert (second.after, second.retries, second.backoff) == ((first,), 2, Backoff(first=0.25, jitter=0.0))
        assert (third.restart, third.wrapper) == ("permanent", ("nice",))
        assert third.intensity == Intensity(restarts=2, seconds=3600.0)
        assert isinstance(third.exception(DEADLINE), RestartedTooOften)
        assert third.attempt == 3
        assert second.state is State.WAITING
        first.cancel()
        assert isinstance(second.exception(DEADLINE), DependencyFailed)


def test_what_a_process_may_use_is_what_it_might_under_the_manager_before(path, short_path, tmp_path):
    place = Location(f"unix://{short_path}/m")
    code = """
from doorman import Limits
manager = ProcessManager(location, journal=folder / "journal")
manager.add_task(Task(os.umask, 0, name="limited", limits=Limits(umask=0o27)))
for priority in range(3):
    manager.add_task(Task.command(["sh", "-c", f"echo {priority} >> {folder}/order"], priority=priority))
say("up")
"""
    slain(code, place, tmp_path)
    with ProcessManager(place, journal=path, rules=[Rule(processes=1)]) as manager:
        manager.run(DEADLINE)
        assert manager.recovered[0].result() == 0o27
        assert (tmp_path / "order").read_text().split() == ["2", "1", "0"]


def test_tasks_of_two_managers_have_ids_of_their_own(path, short_path):
    place = Location(f"unix://{short_path}/m")
    for _ in range(3):
        with ProcessManager(place, journal=path) as manager:
            task = Task(pow, 2, 3)
            task.id = "1"  # as in a process that has just begun
            assert manager.add_task(task).result(DEADLINE) == 8
    assert [finished.id for finished in Journal.read(path)] == ["1", "2", "3"]


def test_a_task_in_the_policy_of_another_is_the_recovered_one(path, monkeypatch):
    from doorman.journal import recorder

    monkeypatch.setitem(recorder._POLICY, "partner", None)
    first, second = Task(pow, 1, 1), Task(pow, 1, 1)
    second.partner = [first]  # as a policy may say after which task this one begins
    parts = added("x")
    parts.policy = recorder._pickled_policy(second)
    assert recorder.policy_of(parts, {first.id: first})["partner"][0] is first
    assert "partner" not in recorder.policy_of(parts, {}), "a task that is forgotten"


def test_what_cannot_be_pickled_does_not_keep_the_rest_of_a_policy(caplog):
    from doorman.journal import recorder

    task = Task(pow, 1, 1, retries=3, can_run=lambda: True)
    task.cwd = (line for line in ())
    parts = added("x")
    parts.policy = recorder._pickled_policy(task)
    policy = recorder.policy_of(parts, {})
    assert policy == {"name": "pow", "handler": "builtins.pow", "retries": 3}
    assert "its cwd cannot be journalled" in caplog.text


def test_a_journal_of_ones_own_stays_open(path):
    with Journal(path) as journal:
        with ProcessManager(journal=journal) as manager:
            assert manager.add_task(Task(pow, 2, 3)).result(30) == 8
        journal.check()
    [finished] = Journal.read(path)
    assert finished.result() == 8


def test_a_manager_does_not_go_on_without_its_journal(path, monkeypatch):
    with ProcessManager(journal=path) as manager:
        manager.add_task(Task(pow, 2, 3))
        with monkeypatch.context() as patch:
            patch.setattr("doorman.journal.journal.encoded", lambda record: b"")
            patch.setattr(os, "write", lambda *_: (_ for _ in ()).throw(OSError(28, "No space left on device")))
            with pytest.raises(JournalError, match="No space left"):
                manager.add_task(Task(pow, 2, 4))
        with pytest.raises(JournalError, match="No space left"):
            manager.tick()
