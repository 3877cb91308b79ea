"""`doorman ps`, `stop` and `top`: views of running managers over every transport, and ordered stops."""

from __future__ import annotations

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from commands import DOORMAN, doorman, ended, looked_at, running, started, until_seen
from waiting import DEADLINE, wait_until

from doorman.control import registry
from remit import Location

pytestmark = pytest.mark.usefixtures("runtime_folder")
SLEEP = ("--", "sleep", "1000")
AT_TERMINAL = (
    "import fcntl, os, sys, termios; fcntl.ioctl(0, termios.TIOCSCTTY, 0); os.execv(sys.argv[1], sys.argv[1:])"
)
"""Has a program begin a session at the terminal that is its standard input, so that Ctrl-C reaches it."""


def test_a_task_is_seen_and_stopped_over_any_transport(crossing_location: Location) -> None:
    with started("run", "--name", "job", "--location", crossing_location.url, *SLEEP) as process:
        [task] = until_seen("job", running).tasks
        assert task.identity is not None
        [head, row] = doorman("ps").stdout.splitlines()
        shown = dict(zip(head.split(), row.split(), strict=False))
        assert (shown["MANAGER"], shown["NAME"], shown["STATE"]) == ("job", "job", "running")
        assert (shown["PID"], shown["STRENGTH"]) == (str(task.identity.pid), task.identity.strength)
        with task.identity.open() as held:
            done = doorman("stop", "job")
            assert (done.returncode, done.stderr) == (0, "")
            assert f"job (pid {held.pid}, {task.identity.strength}) has ended" in done.stdout
            assert held.wait(DEADLINE)
        assert ended(process)[0] == 128 + signal.SIGTERM


def test_a_manager_is_named_by_its_location(short_path: Path) -> None:
    location = f"unix://{short_path}/here"
    with started("run", "--location", location, *SLEEP) as process:
        wait_until(lambda: registry.entries())
        message = json.loads(doorman("ps", "--json", "--location", location).stdout)
        assert [(view["kind"], view["process"]["pid"]) for view in message] == [("run", process.pid)]
        assert doorman("stop", "--location", location, "sleep").returncode == 0


def test_no_manager_runs() -> None:
    done = doorman("ps")
    assert (done.returncode, done.stdout) == (0, "no managers run here: start one by `doorman run`, `map` or `up`\n")


def test_the_entry_of_a_killed_manager_is_removed(runtime_folder: Path) -> None:
    with started("run", "--name", "gone", *SLEEP) as process:
        until_seen("gone", running)
        process.kill()
        process.wait(DEADLINE)
        left = runtime_folder / "remit" / "managers"
        assert (left / "gone.json").exists()
        assert doorman("ps").stdout.startswith("no managers run here")
        assert [*left.iterdir()] == []


def test_a_silent_manager_is_reported() -> None:
    with started("run", "--name", "still", *SLEEP) as process:
        until_seen("still", running)
        process.send_signal(signal.SIGSTOP)
        done = doorman("ps", "--timeout", "0.3")
        process.send_signal(signal.SIGCONT)
        assert done.returncode == 1
        assert re.fullmatch("doorman: the manager still did not answer within 0.3 s: .* ticked.?\n", done.stderr)
        assert looked_at("still") is not None


def test_a_location_without_a_manager_is_reported(short_path: Path) -> None:
    done = doorman("ps", "--timeout", "0.3", "--location", f"unix://{short_path}/nothing")
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1)
    assert "cannot connect to" in done.stderr
    assert "no such file; is a server there?" in done.stderr


def test_two_managers_cannot_have_one_name() -> None:
    with started("run", "--name", "one", *SLEEP):
        until_seen("one", running)
        done = doorman("run", "--name", "one", *SLEEP)
        assert done.returncode == 2
        assert "a manager named 'one' runs already" in done.stderr
        assert "doorman stop one" in done.stderr


def test_a_name_that_several_managers_know_needs_theirs() -> None:
    with started("run", "--name", "a", *SLEEP), started("map", "--name", "b", "sleep", ":::", "1000"):
        until_seen("a", running)
        until_seen("b", running)
        done = doorman("stop", "1")
        assert done.returncode == 2
        assert "name one, as a/1 or b/1" in done.stderr
        assert "1000 (pid " in doorman("stop", "b/1").stdout
        assert looked_at("a") is not None


def test_a_waiting_task_is_cancelled() -> None:
    with started("map", "-j", "1", "--name", "m", "sleep", ":::", "1000", "1001") as process:
        until_seen("m", lambda view: (view.running, view.waiting) == (1, 1))
        assert doorman("stop", "1001").stdout == "1001 waited, and is cancelled\n"
        process.terminate()


def test_a_whole_manager_is_stopped_by_its_name() -> None:
    with started("map", "-j", "2", "--name", "all", "sleep", ":::", "1000", "1001") as process:
        until_seen("all", running)
        done = doorman("stop", "all")
        assert done.returncode == 0
        assert f"manager all (pid {process.pid}) has ended" in done.stdout
        assert ended(process)[0] == 128 + signal.SIGTERM


def test_a_process_that_still_runs_is_reported() -> None:
    command = ("sh", "-c", "trap '' TERM; echo up; exec sleep 1000")
    with started("run", "--name", "deaf", "--grace", "1000", "--", *command) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        done = doorman("stop", "deaf", "--wait", "0.2")
        assert (done.returncode, "still runs" in done.stdout) == (1, True)
        process.terminate()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("stop", "nobody"), "no task or manager is named 'nobody' (running: nothing)"),
        (("ps", "--manager", "nobody"), "no manager named 'nobody' runs here (known: none)"),
        (("ps", "--manager", "a", "--location", "b"), "not allowed with argument"),
        (("top", "--once", "--location", "nowhere"), "no location is named 'nowhere'"),
    ],
)
def test_an_unknown_target_is_reported(words: tuple[str, ...], message: str) -> None:
    done = doorman(*words)
    assert done.returncode == 2
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_top_prints_one_table_where_no_terminal_is() -> None:
    with started("run", "--name", "job", *SLEEP):
        until_seen("job", running)
        for words in (("top", "--once"), ("top",)):
            done = doorman(*words)
            assert (done.returncode, done.stdout.split()[:3]) == (0, ["MANAGER", "ID", "NAME"])
            assert "pidfd-inode" in done.stdout


@pytest.mark.parametrize("key", [b"q", b"\x03"])
def test_top_watches_until_a_key(key: bytes) -> None:
    with started("run", "--name", "watched", *SLEEP):
        until_seen("watched", running)
        ours, theirs = pty.openpty()
        command = [sys.executable, "-c", AT_TERMINAL, *DOORMAN, "top", "--interval", "0.1"]
        environment = {**os.environ, "TERM": "xterm", "COLUMNS": "140", "LINES": "20"}
        with subprocess.Popen(
            command, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, start_new_session=True
        ) as process:
            os.close(theirs)
            seen = b""
            while seen.count(b"watched") < 3:
                ready, _, _ = select.select([ours], [], [], DEADLINE)
                assert ready
                seen += os.read(ours, 65536)
            assert b"pidfd-inode" in seen
            os.write(ours, key)
            wait_until(lambda: not _some(ours))
            assert process.wait(DEADLINE) == 0
        os.close(ours)


def _some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""  # the end of a terminal
