"""The zygote: what it preloads, how it is asked, and what becomes of it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from internals import zygote_channel
from launching import (
    DEADLINE,
    SUPPORT,
    abandoned,
    ended,
    exit_of,
    fifo,
    hear,
    holders,
    launched,
    opened,
    order,
    until_over,
    zygote_of,
)
from waiting import wait_until

from doorman.errors import LaunchRefused
from doorman.launcher import Event, Exited, Launched, LaunchFailed, Order
from doorman.launcher.cgroup import ControlGroup
from doorman.process import Process


def test_pid_and_inode_are_the_childs_own_at_mass_start(zygote, tmp_path):
    """200 children started at once: the process reported for each is the one that wrote its file."""
    waiting = [order(f"a{n}", "report", path=str(tmp_path / f"a{n}")) for n in range(200)]
    heard: list[Event] = []

    def go_on(_: object) -> bool:
        while waiting:
            try:
                zygote.launch(waiting[-1])
            except LaunchRefused:
                break
            waiting.pop()
        return False

    def done(new: list[Event]) -> bool:
        go_on(None)
        return sum(isinstance(event, Exited) for event in new) == 200

    heard = hear(zygote, done)
    processes = {event.attempt: event.process for event in heard if isinstance(event, Launched)}
    assert len(processes) == 200
    for attempt, process in processes.items():
        facts = json.loads((tmp_path / attempt).read_text())
        assert (facts["pid"], facts["inode"], facts["attempt"]) == (process.pid, process.inode, attempt)
    assert {event[1:3] for event in heard if isinstance(event, Exited)} == {(0, None)}


def test_exit_hooks_of_a_preloaded_module_run_once_and_in_the_zygote(tmp_path):
    (tmp_path / "hooked.py").write_text(
        f"import atexit, os\natexit.register(lambda: os.write(os.open({str(tmp_path / 'log')!r}, 1 | 64 | 1024), b'!'))"
    )
    with zygote_of(str(tmp_path), preload=["hooked"]) as launcher:
        for n in range(3):
            exit_of(launcher, order(f"a{n}", "noop"))
    assert (tmp_path / "log").read_bytes() == b"!"


def test_attempt_in_hand_cannot_be_launched_again(zygote):
    zygote.launch(order("a", "noop"))
    with pytest.raises(ValueError, match="already"):
        zygote.launch(order("a", "noop"))
    until_over(zygote)


def test_preload_that_fails_fails_the_orders_before_and_after_it():
    with zygote_of(preload=["json", "no_such_module"]) as launcher:
        for attempt in ("before", "after"):
            launcher.launch(order(attempt, "noop"))
            [failed] = until_over(launcher)
            assert isinstance(failed, LaunchFailed)
            assert "No module named 'no_such_module'" in failed.why


def test_preload_that_starts_a_thread_is_refused(tmp_path):
    (tmp_path / "threaded.py").write_text("import threading\nthreading.Thread(target=threading.Event().wait).start()\n")
    with zygote_of(str(tmp_path), preload=["threaded"]) as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert "started threads" in failed.why


def test_zygote_that_is_killed_takes_its_children_along_and_is_replaced(tmp_path, monkeypatch):
    """Without a control group, but for a descendant that left their process group: nobody knows of it any more."""
    monkeypatch.setattr(ControlGroup, "create", ControlGroup)
    with zygote_of() as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(launcher) as process, Process.open(launcher.pid) as zygote:
            assert opened(reader)
            launcher.launch(order("b", "pause"))
            zygote.signal(signal.SIGSTOP)
            launcher.launch(order("c", "pause"))
            zygote.signal(signal.SIGKILL)
            heard = until_over(launcher, 3)
            assert ended(process)
        last = {event.attempt: event for event in heard if not isinstance(event, Launched)}
        assert last["a"] == Exited("a", None, None)
        assert isinstance(last["c"], LaunchFailed)
        assert exit_of(launcher, order("d", "leave", code=4)).exit_code == 4
        [alive] = [pid for pid in [launcher.pid] if pid is not None]
        assert alive != zygote.pid
        wait_until(lambda: len(holders(tmp_path / "held")) == 1)
        for stray in holders(tmp_path / "held"):
            assert stray.signal(signal.SIGKILL)
        assert abandoned(reader)


def test_zygote_of_a_detached_process_that_is_killed_is_reaped():
    with zygote_of() as launcher:
        launcher.launch(order("a", "pause", detach=True))
        with launched(launcher) as process, Process.open(launcher.pid) as zygote:
            zygote.signal(signal.SIGKILL)
            until_over(launcher)
            wait_until(lambda: launcher.poll() or not Path(f"/proc/{zygote.pid}").exists())
            assert process.signal(signal.SIGKILL)


def test_message_that_is_none_is_survived(zygote):
    channel = zygote_channel(zygote)
    for noise in (b"\xc1", b"\x00", b"x" * 200_000, b"\x92\xa4Fork\x01"):
        channel.send(noise)
    assert exit_of(zygote, order("a", "leave", code=5)).exit_code == 5


def test_manager_that_does_not_poll_is_waited_for(zygote):
    """More is launched than the channel holds: the launcher refuses, and nothing is lost or run twice."""
    accepted = 0

    def launch_on() -> None:
        nonlocal accepted
        for accepted in range(5000):
            zygote.launch(Order(f"a{accepted}", b"s" * 32, b'{"do": "noop"}' + b" " * 20_000))

    with pytest.raises(LaunchRefused):
        launch_on()
    heard = until_over(zygote, accepted)
    assert sorted(event.attempt for event in heard if isinstance(event, Exited)) == sorted(
        f"a{n}" for n in range(accepted)
    )


def test_fork_that_fails_is_back_pressure(tmp_path):
    (tmp_path / "limited.py").write_text(
        "import os, resource\n"
        "if os.geteuid() == 0: os.setresuid(12345, 12345, 12345)  # The limit is not for root.\n"
        "resource.setrlimit(resource.RLIMIT_NPROC, (0, 0))\n"
    )
    with zygote_of(str(tmp_path), preload=["entries", "limited"]) as launcher:
        launcher.launch(order("a", "noop"))
        [failed] = until_over(launcher)
        assert isinstance(failed, LaunchFailed)
        assert failed.back_pressure


def test_manager_out_of_descriptors_refuses_or_fails_but_does_not_break(tmp_path):
    script = textwrap.dedent(f"""
        import os, resource, sys
        sys.path.insert(0, {SUPPORT!r})
        import select
        from launching import *
        with zygote_of() as launcher:
            exit_of(launcher, order("first", "noop"))
            launcher.launch(order("a", "pause"))
            select.select([launcher], [], [])
            soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
            resource.setrlimit(resource.RLIMIT_NOFILE, (3, hard))
            [failed] = until_over(launcher)
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
            print(failed.back_pressure, exit_of(launcher, order("b", "leave", code=3)).exit_code)
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.stdout == "True 3\n", done.stderr


def test_launcher_of_a_fork_belongs_to_the_parent(zygote):
    child = os.fork()
    if child == 0:
        try:
            zygote.launch(order("x", "noop"))
        except ValueError:
            zygote.close()
            os._exit(0)
        os._exit(1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert exit_of(zygote, order("a", "leave", code=6)).exit_code == 6


def test_closing_ends_what_runs_and_may_be_done_twice(tmp_path):
    with zygote_of() as launcher:
        launcher.launch(order("a", "pause"))
        process = launched(launcher)
        launcher.close()
        assert ended(process)
        launcher.close()
        with pytest.raises(ValueError, match="closed"):
            launcher.launch(order("b", "noop"))


def test_closing_kills_a_zygote_that_does_not_answer():
    with zygote_of() as launcher:
        exit_of(launcher, order("a", "noop"))
        with Process.open(launcher.pid) as zygote:
            zygote.signal(signal.SIGSTOP)
            launcher.close(grace=0.0)
            assert ended(zygote)


@pytest.mark.parametrize("launcher", ["ZygoteLauncher()", "CommandLauncher()"])
def test_folders_whose_names_are_no_text_are_folders(tmp_path, launcher):
    """The manager's own, where its modules are, and that of a task."""
    folder = tmp_path / os.fsdecode(b"na\xefve")
    folder.mkdir()
    (folder / "beside.py").write_text("import os\ndef here():\n    return os.getcwdb()\n")
    script = (
        "import os, sys; sys.path.insert(0, os.getcwd())\n"
        "import beside\n"
        "from doorman import ProcessManager, Task\n"
        "from doorman.launcher.command import CommandLauncher\n"
        "from doorman.launcher.zygote import ZygoteLauncher\n"
        f"with ProcessManager(launcher={launcher}, journal='journal') as manager:\n"
        "    assert manager.add_task(Task(beside.here)).result(30) == os.getcwdb()\n"
        "    assert manager.add_task(Task(beside.here, cwd='/')).result(30) == b'/'\n"
        "    detached = manager.add_task(Task(beside.here, cwd=os.getcwd(), detach=True))\n"
        "    assert detached.result(30) == os.getcwdb()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=folder, timeout=DEADLINE, check=False, capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
