"""Control groups: what only they can end, and what they leave alone."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest
from cgroups import folder, groups_of, members, needs_cgroups, removed
from launching import SUPPORT, abandoned, ended, fifo, launched, opened, order, until_over, zygote_of
from waiting import wait_until

from doorman.launcher import Exited, cgroup
from doorman.launcher.cgroup import ControlGroup
from doorman.process import Process

MANAGER = """
import signal, sys
sys.path.insert(0, {support!r})
from launching import *
with zygote_of() as launcher:
    launcher.launch(order("a", "family", path=sys.argv[1]))
    print(launched(launcher).pid, launcher.pid, flush=True)
    signal.pause()
"""


@pytest.fixture(autouse=True)
def _apart():
    """A group around this process alone: managers of other tests would end what is left here for ours to end."""
    needs_cgroups()
    around = folder()
    own = around / f"test-{os.getpid()}"
    own.mkdir()
    (own / "cgroup.procs").write_text("0")
    yield
    (around / "cgroup.procs").write_text("0")
    wait_until(lambda: removed(own))


@contextlib.contextmanager
def manager_of_a_family(held: Path) -> Iterator[tuple[subprocess.Popen[str], Process, Process]]:
    """Start a manager in a process of its own; yield it, the process of its task, and its zygote. The test kills it."""
    command = [sys.executable, "-c", textwrap.dedent(MANAGER.format(support=SUPPORT)), str(held)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as manager:
        task, zygote = (Process.open(int(pid)) for pid in manager.stdout.readline().split())
        yield manager, task, zygote


def test_a_killed_zygote_takes_along_who_left_the_group_of_its_task(tmp_path):
    """The zygote, the task, its child, and a daemon in a session of its own that nobody else knows of."""
    with zygote_of() as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "family", path=str(tmp_path / "held")))
        with launched(launcher) as process, Process.open(launcher.pid) as zygote:
            assert opened(reader)
            [group] = groups_of(os.getpid())
            assert len(members(group)) == 4
            zygote.signal(signal.SIGKILL)
            assert until_over(launcher) == [Exited("a", None, None)]
            assert ended(process)
            assert abandoned(reader)
        launcher.launch(order("b", "noop"))
        until_over(launcher)
    wait_until(lambda: not groups_of(os.getpid()))


def test_the_next_manager_ends_what_one_left_that_was_killed_with_its_zygote(tmp_path):
    with fifo(tmp_path / "held") as reader:
        with manager_of_a_family(tmp_path / "held") as (manager, task, zygote):
            assert opened(reader)
            [group] = groups_of(manager.pid)
            zygote.signal(signal.SIGSTOP)  # It must not see its manager's end.
            manager.kill()
            manager.wait()
            zygote.signal(signal.SIGKILL)
            assert ended(zygote)
            assert ended(task)
        assert members(group), "nothing was left to be ended"
        with zygote_of() as launcher:
            launcher.start()
            assert abandoned(reader)
            wait_until(lambda: not members(group))
        wait_until(lambda: ControlGroup.remove_stale() or not groups_of(manager.pid))


def test_a_zygote_removes_the_group_of_a_manager_that_is_killed(tmp_path):
    with fifo(tmp_path / "held") as reader:
        with manager_of_a_family(tmp_path / "held") as (manager, _, zygote):
            assert opened(reader)
            assert len(groups_of(manager.pid)) == 1
            manager.kill()
        assert ended(zygote)
        assert abandoned(reader)
        assert groups_of(manager.pid) == []


def test_a_detached_child_is_in_no_group_of_its_manager(tmp_path):
    """Even the end of its zygote leaves it alone."""
    with zygote_of() as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "pause", path=str(tmp_path / "held"), detach=True))
        with launched(launcher) as detached, Process.open(launcher.pid) as zygote:
            assert opened(reader)
            assert detached.pid in members(folder())
            zygote.signal(signal.SIGKILL)
            until_over(launcher)
            assert ended(zygote)
            assert detached.alive()
            detached.signal(signal.SIGKILL)
            assert ended(detached)


def test_a_task_that_forks_as_fast_as_it_can_ends_with_its_zygote(tmp_path):
    """Each fork is in a session of its own: killed one by one, some would always be missed."""
    with zygote_of() as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "run_away", path=str(tmp_path / "held")))
        with launched(launcher), Process.open(launcher.pid) as zygote:
            assert opened(reader)
            zygote.signal(signal.SIGKILL)
            until_over(launcher)
        assert abandoned(reader)


def test_what_another_holds_is_left_alone():
    mine = ControlGroup.create()
    [group] = groups_of(os.getpid())
    other = ControlGroup.create()
    assert group.is_dir()
    mine.close()
    wait_until(lambda: ControlGroup.remove_stale() or not group.is_dir())
    assert len(groups_of(os.getpid())) == 1
    other.remove()
    other.close()
    assert groups_of(os.getpid()) == []


def test_what_systemd_has_not_given_away_stays_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(cgroup, "SYSTEMD_FOLDER", tmp_path)
    monkeypatch.setattr(os, "geteuid", lambda: 0)
    assert not ControlGroup.create()
    given = folder() / f"given-{os.getpid()}"
    given.mkdir()
    try:
        assert not cgroup.is_delegated(given)
        os.setxattr(given, "user.delegate", b"1")
        assert cgroup.is_delegated(given)
        assert cgroup.is_delegated(given / "below") is os.access(given / "below", os.W_OK)
    finally:
        given.rmdir()


@pytest.mark.parametrize(
    ("groups", "mounts", "own"),
    [
        ("0::/a/b", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/a/b"),
        ("4:memory:/x\n0::/", "1 0 0:1 / /mnt/my\\040groups rw shared:1 - cgroup2 none rw", "/mnt/my groups"),
        ("0::/a/b/c", "1 0 0:1 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", "/sys/fs/cgroup/b/c"),
        ("0::/elsewhere", "1 0 0:1 /a /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        ("4:memory:/x", "1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw", None),
        ("0::/a", "1 0 0:1 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu", None),
    ],
    ids=["whole", "spaces", "part", "another-part", "version-1", "not-mounted"],
)
def test_its_own_group_is_found(monkeypatch, groups, mounts, own):
    told = {"/proc/self/cgroup": groups, "/proc/self/mountinfo": mounts}
    monkeypatch.setattr(Path, "read_text", lambda path: told[str(path)])
    assert cgroup.own_group() == (None if own is None else Path(own))
