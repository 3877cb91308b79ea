"""Process: held by its descriptor, never by its number."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from descriptors import open_descriptors
from injection import call_with, interrupt
from launching import DEADLINE

from doorman.identity import Credential, hello
from doorman.process import Process, ancestors, pidfd_inode, start_time, stat_fields

ROOT = str(Path(__file__).parents[2])
PAUSE = [sys.executable, "-S", "-c", "import signal; signal.pause()"]


@pytest.fixture
def pausing() -> Iterator[Process]:
    with subprocess.Popen(PAUSE, process_group=0) as child, Process.open(child.pid) as process:
        yield process
        process.signal(signal.SIGKILL)


def test_inode_is_the_same_however_it_is_asked(pausing):
    with Process.open(pausing.pid) as again:
        assert again.inode == pausing.inode is not None
    with Process.open(os.getpid()) as other:
        assert other.inode != pausing.inode


def test_inode_and_start_time_survive_exec():
    with subprocess.Popen(["sh", "-c", "read line; exec cat"], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        with Process.open(child.pid) as process:
            before = process.inode, process.start_time
            child.stdin.write(b"\n")
            child.stdin.write(b"!")
            child.stdin.close()
            assert child.stdout.read() == b"!"
        with Process.open(child.pid) as process:
            assert (process.inode, start_time(child.pid)) == before


def test_start_time_is_the_kernels(pausing):
    fields = Path(f"/proc/{pausing.pid}/stat").read_text().rpartition(")")[2].split()
    assert pausing.start_time == int(fields[19])


def test_descriptor_is_readable_at_the_end(pausing):
    assert not pausing.wait(0)
    assert pausing.signal(signal.SIGKILL)
    assert pausing.wait(DEADLINE)


def test_zombie_is_not_alive_and_is_not_signalled():
    with subprocess.Popen(["true"]) as child, Process.open(child.pid) as process:
        assert process.wait(DEADLINE)
        os.kill(child.pid, 0)  # Its number is there still.
        assert not process.alive()
        assert not process.signal(signal.SIGKILL)


def test_reaped_process_is_not_signalled():
    with subprocess.Popen(["true"], process_group=0) as child, Process.open(child.pid) as process:
        child.wait()
        assert not process.alive()
        assert not process.signal(signal.SIGTERM)
        assert not process.signal_group(signal.SIGTERM)


def test_opening_what_is_not_there_fails():
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    with pytest.raises(ProcessLookupError):
        Process.open(child)


def test_group_is_reached_after_its_leader_has_ended():
    script = "import os, signal\nif os.fork(): os._exit(0)\nprint(os.getpid(), flush=True)\nsignal.pause()"
    with (
        subprocess.Popen([sys.executable, "-c", script], process_group=0, stdout=subprocess.PIPE) as leader,
        Process.open(leader.pid) as process,
        Process.open(int(leader.stdout.readline())) as member,
    ):
        leader.wait()
        assert member.alive()
        assert process.signal_group(signal.SIGKILL)
        assert member.wait(DEADLINE)


def test_group_signal_to_one_that_leads_none_reaches_it_alone():
    with subprocess.Popen(PAUSE) as child, Process.open(child.pid) as process:
        assert process.signal_group(signal.SIGTERM)
        assert child.wait(DEADLINE) == -signal.SIGTERM


def test_closed_process_is_left_alone(pausing):
    with Process.open(pausing.pid) as process:
        process.close()
        process.close()
        assert process.closed
        assert not process.signal(signal.SIGKILL)
        assert not process.signal_group(signal.SIGKILL)
        with pytest.raises(ValueError, match="is closed"):
            process.fileno()
    assert pausing.alive()


def test_last_reference_closes_the_descriptor(pausing):
    process = Process.open(pausing.pid)
    descriptor = process.fileno()
    del process
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(descriptor)


# An interrupt before the block of a file leaves its end to the last reference, which warns.
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning", "ignore::ResourceWarning")
@pytest.mark.parametrize("make", [Process.open, lambda _: hello(Credential("a")), stat_fields])
def test_an_interrupt_at_any_line_leaves_no_descriptor_open_and_closes_none_twice(pausing, make):
    kept: list[Process] = []

    def use() -> None:
        made = make(pausing.pid)
        if isinstance(made, Process):
            kept.append(made)
            with made:
                assert made.alive()

    call_with(interrupt, 10**9, use)
    before = open_descriptors()
    for line in itertools.count(1):
        outcome = call_with(interrupt, line, use)
        assert outcome.error is None
        for process in kept:
            process.close()
        kept.clear()
        assert open_descriptors() == before, outcome.place
        if outcome.place is None:
            break


def test_descends_from_its_parents_and_nothing_else(pausing):
    assert pausing.descends_from(os.getpid())
    assert pausing.descends_from(os.getppid())
    assert not pausing.descends_from(pausing.pid)
    with Process.open(os.getpid()) as own:
        assert not own.descends_from(pausing.pid)
    assert ancestors(pausing.pid)[0] == os.getpid()


def test_name_with_brackets_does_not_confuse(tmp_path):
    program = tmp_path / "a) R 1 1 (b"
    program.symlink_to("/bin/cat")
    with subprocess.Popen([program], stdin=subprocess.PIPE) as child, Process.open(child.pid) as process:
        assert process.descends_from(os.getpid())
        assert process.start_time == start_time(child.pid)


def test_kernel_without_inodes_is_told_by_its_descriptors(monkeypatch):
    monkeypatch.setattr("doorman.process.has_pidfd_inodes", lambda: False)
    with Process.open(os.getpid()) as process:
        assert process.inode is None
        assert pidfd_inode(process.fileno()) is None


def test_kernel_without_group_signals_signals_the_process(pausing, monkeypatch):
    real = signal.pidfd_send_signal

    def old(descriptor: int, number: int, info: None = None, flags: int = 0) -> None:
        if flags:
            raise OSError(22, "Invalid argument")
        real(descriptor, number)

    monkeypatch.setattr(signal, "pidfd_send_signal", old)
    assert pausing.signal_group(signal.SIGKILL)
    assert pausing.wait(DEADLINE)
