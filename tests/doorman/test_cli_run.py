"""`doorman run`: output, exit codes, signals, and no process left after a stop."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import signal
import subprocess
import termios
from pathlib import Path

import pytest
from commands import DOORMAN, doorman, ended, line_of, started, until_seen
from waiting import DEADLINE

from doorman.process import Process

pytestmark = pytest.mark.usefixtures("runtime_folder")


def test_output_and_exit_code_are_the_commands() -> None:
    done = doorman("run", "--", "sh", "-c", "echo out; echo err >&2; exit 3")
    assert (done.returncode, done.stdout, done.stderr) == (3, "out\n", "err\n")


def test_the_exit_code_of_a_signal_is_that_of_a_shell() -> None:
    assert doorman("run", "--", "sh", "-c", "kill -USR1 $$").returncode == 128 + signal.SIGUSR1


def test_words_behind_the_first_dashes_are_the_commands_own() -> None:
    assert doorman("run", "--", "echo", "-v", "--", "--name", "x").stdout == "-v -- --name x\n"


def test_a_file_name_that_is_no_text_reaches_the_command(tmp_path: Path) -> None:
    done = doorman("run", "--cwd", str(tmp_path), "--", "touch", "\udcff")
    assert (done.returncode, [path.name for path in tmp_path.iterdir()]) == (0, ["\udcff"])


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_it_with_its_whole_tree(number: signal.Signals) -> None:
    command = ("run", "--", "sh", "-c", "sleep 1000 & echo $!; wait")
    with started(*command) as process, Process.open(int(line_of(process))) as grandchild:
        process.send_signal(number)
        assert ended(process)[0] == (-signal.SIGINT if number == signal.SIGINT else 128 + signal.SIGTERM)
        assert grandchild.wait(DEADLINE)


def test_a_process_that_ignores_term_is_killed_after_the_grace() -> None:
    with started("run", "--grace", "0.1", "--", "sh", "-c", "trap '' TERM; echo up; exec sleep 1000") as process:
        assert line_of(process) == "up"
        process.terminate()
        assert ended(process)[0] == 128 + signal.SIGKILL


def test_a_second_signal_waits_for_no_grace() -> None:
    with started("run", "--grace", "1000", "--", "sh", "-c", "trap '' TERM; echo up; exec sleep 1000") as process:
        assert line_of(process) == "up"
        process.terminate()
        process.send_signal(signal.SIGINT)
        assert ended(process)[0] in {128 + signal.SIGKILL, -signal.SIGINT}  # whichever signal it handled first


def test_its_end_by_kill_is_the_end_of_its_command() -> None:
    command = ("run", "--", "sh", "-c", "echo $$; exec sleep 1000")
    with started(*command) as process, Process.open(int(line_of(process))) as child:
        process.kill()
        assert child.wait(DEADLINE)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1])
def test_a_signal_before_the_command_starts_is_reported_as_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: signal.Signals
) -> None:
    (tmp_path / "sitecustomize.py").write_text("import sys, time\ntime.sleep('-c' in sys.orig_argv)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with started("run", "--name", "slow", "--", "true") as process:
        until_seen("slow", lambda view: view.tasks)
        process.send_signal(number)
        assert ended(process) == (128 + number, "", "")


def test_one_that_expires_has_never_ended_well() -> None:
    assert doorman("run", "--expires", "0.2", "--", "sleep", "1000").returncode == 128 + signal.SIGTERM
    heeding = ("sh", "-c", "trap 'exit 0' TERM; sleep 1000 & wait")
    assert doorman("run", "--expires", "2", "--", *heeding).returncode == 124


def test_it_is_tried_again(tmp_path: Path) -> None:
    script = 'echo x >> tries; test "$(wc -l < tries)" -ge 3'
    done = doorman("run", "--retries", "5", "--cwd", str(tmp_path), "--", "sh", "-c", script)
    assert (done.returncode, (tmp_path / "tries").read_text()) == (0, "x\n" * 3)


def test_verbose_prints_the_process_and_its_end() -> None:
    done = doorman("run", "--verbose", "--", "sh", "-c", "echo $$")
    proven, over = done.stderr.splitlines()
    assert re.fullmatch(r"doorman: 'sh' is pid (\d+) \(pidfd-inode\)", proven)
    assert f" {done.stdout.strip()} " in proven
    assert over.startswith("doorman: 'sh' is done: exit code 0")


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("run",), "no command given: write it after '--'"),
        (("run", "--expires", "soon", "--", "true"), "'soon' is not a number of seconds above 0"),
        (("run", "--retries", "-1", "--", "true"), "'-1' is not a whole number"),
        (("run", "--name", "a/b", "--", "true"), "'a/b' cannot name a manager"),
        (("run", "--cwd", "/nowhere/at/all", "--", "true"), "its working directory does not exist: /nowhere/at/all"),
        (("run", "--location", "memory://x", "--", "true"), "does not reach other processes; use unix:"),
        (("run", "--location", "unixx:///tmp/x", "--", "true"), "unixx"),
        (("run", "--log-path", "/dev/null/logs", "--", "true"), "/dev/null/logs"),
        (("ps", "--", "x"), "unrecognized arguments: -- x"),
    ],
)
def test_an_invalid_command_line_is_reported(words: tuple[str, ...], message: str) -> None:
    done = doorman(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_an_unknown_command_is_reported() -> None:
    done = doorman("run", "--", "no-such-command")
    assert (done.returncode, done.stderr) == (127, "doorman: cannot run no-such-command: No such file or directory\n")


@pytest.mark.parametrize("command", ["run", "map", "up", "ps", "stop", "top"])
def test_help_is_there(command: str) -> None:
    done = doorman(command, "--help")
    assert done.returncode == 0
    assert done.stdout.startswith(f"usage: doorman {command}")


def test_a_closed_output_pipe_ends_it_with_log_files_too(tmp_path: Path) -> None:
    with started(
        "run", "--log-path", str(tmp_path), "--", "sh", "-c", "echo a; read x; echo b; exec sleep 1000"
    ) as process:
        assert line_of(process) == "a"
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.close()
        process.stdin.write("go on\n")
        process.stdin.flush()
        assert process.wait(DEADLINE) == 128 + signal.SIGTERM
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_a_command_reads_the_standard_input_of_doorman() -> None:
    assert doorman("run", "--", "sh", "-c", "read one; echo $one; cat", stdin="a\nb\nc\n").stdout == "a\nb\nc\n"


def test_a_command_reads_from_the_terminal_that_doorman_is_in_front_of() -> None:
    """And Ctrl-C there ends it, by way of Doorman."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [*DOORMAN, "run", "--", "sh", "-c", "read line; echo got $line; sleep 1000"],
        stdin=theirs,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
    ) as process:
        try:
            os.write(ours, b"hello\n")
            assert line_of(process) == "got hello"
            os.write(ours, b"\x03")
            assert ended(process)[0] == -signal.SIGINT
        finally:
            process.kill()
            os.close(ours)
            os.close(theirs)


def test_a_command_has_no_input_where_doorman_has_none() -> None:
    script = f"exec <&-; exec {shlex.join(DOORMAN)} run -- cat"
    assert subprocess.run(["sh", "-c", script], timeout=DEADLINE, check=False).returncode == 0
