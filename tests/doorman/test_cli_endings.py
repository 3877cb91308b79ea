"""How the command lines end, stop and continue: Ctrl-C, Ctrl-Z, a terminal that goes, and output that is not taken."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pty
import select
import signal
import subprocess
import sys
import termios
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from commands import DOORMAN, doorman
from waiting import DEADLINE, wait_until

pytestmark = pytest.mark.usefixtures("runtime_folder")
SHELL_DOORMAN = f"{sys.executable} -m doorman"
IMPORTS = int(os.environ.get("DOORMAN_IMPORTS", "5"))
"""Number of imports during which a Ctrl-C is tried."""


class Terminal:
    """A terminal with a shell in it."""

    def __init__(self, words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.seen = ""
        self.shell = subprocess.Popen(
            ["bash", "-c", words],
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, text: str) -> None:
        """Read until a text has appeared."""
        deadline = time.monotonic() + DEADLINE
        while text not in self.seen:
            ready, _, _ = select.select([self.ours], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, self.seen
            try:
                part = os.read(self.ours, 1 << 16).decode(errors="replace")
            except OSError:
                part = ""
            assert part, self.seen
            self.seen += part


@contextlib.contextmanager
def terminal(words: str) -> Iterator[Terminal]:
    opened = Terminal(words)
    try:
        yield opened
    finally:
        opened.shell.kill()
        opened.shell.wait()
        with contextlib.suppress(OSError):
            os.close(opened.ours)


def state(pid: int) -> str:
    """Return the letter for the state of a process."""
    return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0].decode()


# -- keys ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["run", "map", "up"])
def test_ctrl_c_ends_the_loop_of_a_shell(tmp_path, command):
    program = f"sh -c 'echo x >> {tmp_path}/runs; echo started; exec sleep 1000'"
    (tmp_path / "Procfile").write_text(f"web: {program}\n")
    words = {
        "run": f"run -- {program}",
        "map": f"map --shell echo x '>>' {tmp_path}/runs';' exec sleep {{}} ::: 1000",
        "up": f"up {tmp_path}/Procfile",
    }[command]
    with terminal(f"for i in 1 2 3; do {SHELL_DOORMAN} {words}; done; echo not reached") as screen:
        wait_until(lambda: (tmp_path / "runs").exists() and (tmp_path / "runs").read_text())
        screen.type(b"\x03")
        assert screen.shell.wait(DEADLINE) in {-signal.SIGINT, 128 + signal.SIGINT}
    assert (tmp_path / "runs").read_text() == "x\n"


@pytest.mark.parametrize("command", ["run", "up"])
def test_ctrl_z_stops_and_continues_the_command(tmp_path, command):
    program = f"sh -c 'sleep 1000 & echo $! > {tmp_path}/pid; echo started; wait'"
    (tmp_path / "Procfile").write_text(f"web: {program}\n")
    words = f"run -- {program}" if command == "run" else f"up {tmp_path}/Procfile"
    script = f"set -m; {SHELL_DOORMAN} {words}; echo stopped $?; read line; fg"
    with terminal(script) as screen:
        screen.until("started")
        pid = int((tmp_path / "pid").read_text())
        screen.type(b"\x1a")
        screen.until(f"stopped {128 + signal.SIGTSTP}")
        wait_until(lambda: state(pid) == "T")
        screen.type(b"\n")
        wait_until(lambda: state(pid) == "S")
        screen.type(b"\x03")
        assert screen.shell.wait(DEADLINE) in {-signal.SIGINT, 128 + signal.SIGINT}
    assert not Path(f"/proc/{pid}").exists()


def test_ctrl_z_without_a_shell_that_could_continue_it_changes_nothing(tmp_path):
    words = ("run", "--", "sh", "-c", f"touch {tmp_path}/up; until test -e {tmp_path}/go; do sleep 0.01; done")
    with subprocess.Popen([*DOORMAN, *words], start_new_session=True) as process:
        wait_until((tmp_path / "up").exists)
        process.send_signal(signal.SIGTSTP)
        (tmp_path / "go").touch()
        assert process.wait(DEADLINE) == 0


INTERRUPTED = """
    import signal, sys
    count = 0
    class Finder:
        def find_spec(self, name, path=None, target=None):
            global count
            count += 1
            if count == {number}:
                signal.raise_signal(signal.SIGINT)
    from doorman.cli import main
    sys.meta_path.insert(0, Finder())
    sys.argv = ["doorman", "{command}", "--", "true"]
    code = main()
    print(count)
    sys.exit(code)
"""


def interrupted(command: str, number: int) -> subprocess.CompletedProcess[str]:
    words = [sys.executable, "-c", textwrap.dedent(INTERRUPTED.format(command=command, number=number))]
    return subprocess.run(words, capture_output=True, text=True, timeout=DEADLINE, check=False)


def test_ctrl_c_during_an_import_ends_the_command_without_a_word():
    imports = int(interrupted("run", -1).stdout.split()[-1])
    for number in range(1, imports, max(1, imports // IMPORTS)):
        done = interrupted("run", number)
        assert (done.returncode, done.stderr) == (-signal.SIGINT, ""), number


# -- outputs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "words", [["map", "echo", ":::", "a", "b", "c"], ["up", "Procfile"], ["ps"]], ids=lambda w: w[0]
)
def test_a_full_disk_is_reported_once(tmp_path, words):
    (tmp_path / "doorman.toml").write_text(
        '[web]\ncommand = "for i in 1 2 3; do echo $i; done"\nrestart = "temporary"\n'
    )
    words = [word.replace("Procfile", f"{tmp_path}/doorman.toml") for word in words]
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*DOORMAN, *words], stdout=full, stderr=subprocess.PIPE, text=True, timeout=DEADLINE, check=False
        )
    assert done.returncode == 1
    assert done.stderr.count("No space left on device") == 1
    assert "doorman: cannot write to standard output" in done.stderr
    assert "Traceback" not in done.stderr
    if words[0] == "map":
        assert "3 done, 0 failed" in done.stderr


WRITES_LATE = """
import atexit, sys
from doorman.cli import main
atexit.register(sys.stderr.write, "late")
sys.exit(main())
"""


@pytest.mark.parametrize("program", [DOORMAN, [sys.executable, "-c", WRITES_LATE]], ids=["", "writes at exit"])
def test_full_errors_do_not_end_the_work(tmp_path, program):
    # Unbuffered streams would hide what is left in a buffer at the end.
    env = {name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"}
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [*program, "map", "echo", ":::", "a", "b"],
            env=env,
            stdout=subprocess.PIPE,
            stderr=full,
            timeout=DEADLINE,
            check=False,
        )
    assert (done.returncode, sorted(done.stdout.split())) == (1, [b"a", b"b"])


def test_a_slow_reader_of_a_non_blocking_pipe_gets_all():
    ours, theirs = os.pipe()
    os.set_blocking(theirs, False)
    words = ("map", "-j", "1", "seq", "{}", ":::", "100000", "100000")
    with subprocess.Popen([*DOORMAN, *words], stdout=theirs, stderr=subprocess.PIPE) as process:
        os.close(theirs)
        with os.fdopen(ours, "rb", buffering=0) as reader:
            seen = 0
            while part := reader.read(1 << 16):
                seen += len(part)
                select.select([], [], [], 0.001)
        assert process.wait(DEADLINE) == 0
    assert seen == 2 * sum(len(f"{number}\n") for number in range(1, 100001))


def test_a_terminal_that_closes_stops_the_programs_in_order(tmp_path):
    trap = f"trap 'sleep 0.2; echo {{0}} >> {tmp_path}/ended; exit 0' TERM; echo {{0}} up; while :; do sleep 0.05; done"
    lines = [f"{name}: {trap.format(name)}" for name in ("db", "queue", "web")]
    (tmp_path / "Procfile").write_text("\n".join([*lines, ""]))
    # HUP ignored: the terminal's end shows by its errors alone.
    with terminal(f"trap '' HUP; exec {SHELL_DOORMAN} up {tmp_path}/Procfile") as screen:
        for name in ("db", "queue", "web"):
            screen.until(f"{name} up")
        os.close(screen.ours)
        screen.shell.send_signal(signal.SIGTERM)
        assert screen.shell.wait(DEADLINE) == 0
    assert (tmp_path / "ended").read_text().split() == ["web", "queue", "db"]


def test_the_reader_of_remit_may_go(tmp_path):
    words = f"{sys.executable} -m remit transports"
    done = subprocess.run(
        ["bash", "-c", f"{words} | true; echo ${{PIPESTATUS[0]}}; {words} > /dev/full; echo $?"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    first, second = done.stdout.split()
    assert first in {"0", "141"}  # 0 if it had written before the reader ended
    assert second == "1"
    assert done.stderr == "remit: cannot write to standard output: No space left on device\n"


def test_a_command_that_ends_by_sigint_does_not_end_doorman_by_it():
    assert doorman("run", "--", "sh", "-c", "kill -INT $$").returncode == 128 + signal.SIGINT
