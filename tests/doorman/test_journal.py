"""The journal as a file: what is written is read again, whatever has happened to it meanwhile."""

from __future__ import annotations

import os
import stat
import subprocess
import sys
from pathlib import Path

import pytest
from journals import added, done, tasks, written
from waiting import DEADLINE

from doorman import Journal, ProcessManager, State, Task
from doorman.errors import (
    JournalError,
    JournalInUse,
)
from doorman.journal.records import Entry, JournalOpened, encoded


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journal"


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
    path.write_bytes(encoded(JournalOpened(99, 1)))
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


def test_one_that_cannot_be_written_anew_takes_no_more(path, monkeypatch):
    monkeypatch.setattr("doorman.journal.journal.ROTATE", 0)
    with Journal(path) as journal:
        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda *_: (_ for _ in ()).throw(OSError(5, "Input/output error")))
            with pytest.raises(JournalError, match="Input/output error"):
                journal.append(added("large", b"x" * 10_000))
        with pytest.raises(JournalError, match="Input/output error"):
            journal.append(added("late"))


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
