"""`doorman map`: inputs, outputs, rules, halts, the final table, and the exit code."""

from __future__ import annotations

import os
import pty
import signal
import subprocess
from pathlib import Path

import pytest
from commands import DOORMAN, doorman, ended, running, started, until_seen
from waiting import DEADLINE, wait_until

from doorman.cli import main

pytestmark = pytest.mark.usefixtures("runtime_folder")


def rows(table: str) -> list[list[str]]:
    """The rows of the final table on standard error, as words."""
    lines = table.splitlines()
    head = next((number for number, line in enumerate(lines) if line.startswith("INPUT")), len(lines))
    return [line.split() for line in lines[head + 1 : -1]]


def test_each_input_has_a_task_and_a_row() -> None:
    done = doorman("map", "echo", "got", "{}", ":::", "a", "b c")
    assert (done.returncode, sorted(done.stdout.splitlines())) == (0, ["got a", "got b c"])
    (name, state, code, *_, pid, strength), _ = rows(done.stderr)
    assert (name, state, code, strength) == ("a", "done", "0", "pidfd-inode")
    assert int(pid) > 1
    assert done.stderr.splitlines()[-1].startswith("doorman: 2 done, 0 failed in ")


def test_inputs_come_from_standard_input_as_they_are_written() -> None:
    with started("map", "-j", "2", "sh", "-c", "echo $0 >&2") as process:
        assert process.stdin is not None
        assert process.stderr is not None
        process.stdin.write("first\n\n")
        process.stdin.flush()
        assert process.stderr.readline() == "first\n"
        process.stdin.write("second")
        code, _, errors = ended(process)
    assert (code, [row[:3] for row in rows(errors)]) == (0, [["first", "done", "0"], ["second", "done", "0"]])


def test_inputs_may_end_with_nul() -> None:
    assert doorman("map", "-0k", "echo", stdin="a\nb\0c\0").stdout == "a\nb\nc\n"


def test_outputs_are_whole_and_in_order() -> None:
    """The first input finishes last: it waits for a file that the last one creates."""
    script = (
        "echo begin $1; case $1 in 1) while ! test -e done; do sleep 0.01; done;; 3) touch done;; esac; echo end $1"
    )
    done = doorman(
        "map", "-k", "-j", "3", "sh", "-c", script, "sh", "{}", ":::", "1", "2", "3", cwd=os.environ["XDG_RUNTIME_DIR"]
    )
    assert done.stdout.splitlines() == [f"{word} {number}" for number in "123" for word in ("begin", "end")]


def test_no_more_run_at_a_time_than_may(tmp_path: Path) -> None:
    """Each notes how many run beside it; the mutual wait of two would end if there were a third."""
    script = "mkdir $1; ls -d [0-9] | wc -l; rmdir $1"
    done = doorman("map", "-j", "1", "sh", "-c", script, "sh", "{#}", ":::", *"abcdef", cwd=tmp_path)
    assert done.stdout.split() == ["1"] * 6


def test_the_exit_code_counts_failures() -> None:
    done = doorman("map", "-j", "4", "sh", "-c", "exit $0", ":::", "0", "1", "2", "0", "3")
    assert (done.returncode, [row[1:3] for row in rows(done.stderr)]) == (
        3,
        [["done", "0"], ["failed", "1"], ["failed", "2"], ["done", "0"], ["failed", "3"]],
    )


def test_the_exit_code_ends_where_signals_begin() -> None:
    done = doorman("map", "-j", "8", "--table", "none", "false", stdin="\n".join(map(str, range(103))))
    assert (done.returncode, done.stderr.splitlines()[-1].split(" in ")[0]) == (101, "doorman: 0 done, 103 failed")


def test_one_that_runs_too_long_has_failed() -> None:
    done = doorman("map", "--timeout", "0.2", "sleep", ":::", "1000")
    assert (done.returncode, rows(done.stderr)[0][:3]) == (1, ["1000", "expired", "SIGTERM"])


def test_failures_are_tried_again(tmp_path: Path) -> None:
    script = 'echo x >> $0; test "$(wc -l < $0)" -ge 3'
    done = doorman("map", "--retries", "2", "sh", "-c", script, ":::", "a", "b", cwd=tmp_path)
    assert (done.returncode, (tmp_path / "a").read_text()) == (0, "x\n" * 3)


def test_halt_now_stops_running_tasks() -> None:
    script = "test $0 = 2 && exit 7; sleep 1000"
    done = doorman("map", "-j", "2", "--halt", "now", "sh", "-c", script, ":::", "1", "2", "3", "4", "5")
    message = {row[0]: row[1] for row in rows(done.stderr)}
    assert (done.returncode, message["1"], message["2"]) == (1, "cancelled", "failed")
    assert "4 not run or stopped" in done.stderr


def test_halt_soon_lets_running_tasks_finish(tmp_path: Path) -> None:
    script = (
        "test $0 = 2 && touch failing && exit 7; while ! test -e failing; do sleep 0.01; done; sleep 0.3; touch ended"
    )
    done = doorman("map", "-j", "2", "--halt", "soon", "sh", "-c", script, ":::", "1", "2", "3", "4", "5", cwd=tmp_path)
    message = {row[0]: row[1] for row in rows(done.stderr)}
    assert (done.returncode, message["1"], message["2"]) == (1, "done", "failed")
    assert (tmp_path / "ended").exists()


def test_a_shell_gets_the_input_quoted() -> None:
    done = doorman("map", "--shell", "echo {} | tr a-z A-Z", ":::", "it's; $HOME")
    assert done.stdout == "IT'S; $HOME\n"


def test_a_dry_run_prints_the_commands_and_runs_none(tmp_path: Path) -> None:
    done = doorman("map", "--dry-run", "touch", "{#}-{/.}", ":::", "/a/b c.txt", cwd=tmp_path)
    assert (done.stdout, done.stderr, [*tmp_path.iterdir()]) == ("touch '1-b c'\n", "", [])


def test_each_has_its_logs(tmp_path: Path) -> None:
    done = doorman("map", "--log-path", str(tmp_path), "echo", ":::", "a", "b")
    assert sorted(done.stdout.split()) == ["a", "b"]
    logs = {path.name.partition("-")[0]: path.read_text() for path in tmp_path.glob("*.out")}
    assert logs == {"a": "a\n", "b": "b\n"}


def test_a_signal_stops_all() -> None:
    with started("map", "-j", "2", "--name", "sleepers", "sleep", ":::", "1001", "1002", "1003") as process:
        view = until_seen("sleepers", lambda view: view.running == 2 and running_first(view))
        held = [task.identity.open() for task in view.tasks if task.identity is not None]
        process.send_signal(signal.SIGINT)
        code, _, errors = ended(process)
        assert (code, [row[1] for row in rows(errors)]) == (-signal.SIGINT, ["cancelled"] * 3)
        assert [process.wait(DEADLINE) for process in held] == [True, True]
        for one in held:
            one.close()


def running_first(view: object) -> bool:
    return all(task.state == "running" for task in view.tasks[:2])  # type: ignore[attr-defined]


def test_a_task_stopped_alone_counts_as_failed() -> None:
    with started("map", "--name", "one", "sleep", ":::", "1000") as process:
        until_seen("one", running)
        assert doorman("stop", "1000").returncode == 0
        assert ended(process)[0] == 1


def test_a_command_that_is_done_in_the_journal_is_skipped(tmp_path: Path) -> None:
    """The second of three fails; the first manager is killed while the third runs."""
    script = "echo $0 >> ran; test $0 != b -o -e mended || exit 1; test $0 != c -o -e mended || exec sleep 1000"
    words = ("map", "-j", "1", "-k", "--name", "m", "--resume", str(tmp_path / "j"), "--cwd", str(tmp_path))
    words += ("sh", "-c", script, ":::", "a", "b", "c")
    with started(*words) as process:
        until_seen("m", lambda view: running(view) and view.tasks[0].name == "c")
        wait_until(lambda: (tmp_path / "ran").read_text().split() == ["a", "b", "c"])
        process.kill()
        process.wait(DEADLINE)
    (tmp_path / "mended").touch()
    done = doorman(*words)
    assert (done.returncode, (tmp_path / "ran").read_text().split()) == (0, ["a", "b", "c", "b", "c"])
    assert [row[:3] for row in rows(done.stderr)] == [["a", "done", "before"], ["b", "done", "0"], ["c", "done", "0"]]
    assert "2 done, 0 failed, 1 done before in" in done.stderr


def test_a_closed_output_pipe_ends_it() -> None:
    command = [*DOORMAN, "map", "-j", "2", "--table", "none", "echo"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"a\n")
        process.stdin.flush()
        assert process.stdout.readline() == b"a\n"
        process.stdout.close()
        process.stdin.write(b"b\nc\n")
        process.stdin.flush()
        assert process.wait(DEADLINE) == 128 + signal.SIGPIPE


@pytest.mark.parametrize("words", [("echo", "{}"), ("--dry-run", "echo", "{}"), ("sh", "-c", "echo {} >&2; exit 1")])
def test_closed_output_and_error_pipes_cause_no_traceback(words: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    command = [*DOORMAN, "map", *words, ":::", *"abc"]
    try:
        done = subprocess.run(command, stdout=writing, stderr=writing, timeout=DEADLINE, check=False)
    finally:
        os.close(writing)
    assert done.returncode == 128 + signal.SIGPIPE


def test_closed_output_and_errors_are_none() -> None:
    words = ("sh", "-c", '"$@" >&- 2>&- <&-; echo $?', "sh", *DOORMAN, "map", "echo", ":::", "a")
    assert subprocess.run(words, capture_output=True, timeout=DEADLINE, check=True).stdout == b"0\n"


def test_a_load_holds_back_but_never_all() -> None:
    done = doorman("map", "-j", "4", "--max-load", "1", "true", ":::", *"abc")
    assert (done.returncode, [row[1] for row in rows(done.stderr)]) == (0, ["done"] * 3)


def test_a_terminal_gets_a_bar() -> None:
    ours, theirs = pty.openpty()
    with subprocess.Popen([*DOORMAN, "map", "sleep", "{}", ":::", "0.2", "1.2"], stderr=theirs) as process:
        os.close(theirs)
        seen = b""
        while part := _some(ours):
            seen += part
        assert process.wait(DEADLINE) == 0
    os.close(ours)
    assert b"0/2" in seen
    assert "━".encode() in seen
    assert b"doorman: 2 done, 0 failed" in seen


def _some(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""  # the end of a terminal


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("map",), "no command given"),
        (("map", ":::", "a"), "no command given"),
        (("map", "echo", ":::", "a", ":::", "b"), "':::' is given twice"),
        (("map", "-j", "0", "echo"), "'0' is not a positive whole number"),
        (("map", "--max-load", "120", "echo"), "is not a percentage"),
        (("map", "--halt", "later", "echo"), "invalid choice: 'later'"),
        (("map", "--resume", "/dev/null/j", "echo", ":::", "a"), "/dev/null/j"),
        (("map", "--resume", "README.md", "echo", ":::", "a"), "README.md"),
    ],
)
def test_an_invalid_command_line_is_reported(words: tuple[str, ...], message: str) -> None:
    done = doorman(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_the_folder_of_a_map_that_was_killed_is_removed_by_the_next(tmp_path: Path, monkeypatch) -> None:
    """The folder of a running map stays."""
    monkeypatch.setenv("TMPDIR", str(tmp_path))

    def folders() -> set[Path]:
        return {path for path in tmp_path.glob("doorman-map-*") if any(path.glob("*.out"))}

    with started("map", "sleep", ":::", "1000") as alive:
        wait_until(lambda: len(folders()) == 1)
        [kept] = folders()
        with started("map", "sleep", ":::", "1000") as killed:
            wait_until(lambda: len(folders()) == 2)
            killed.kill()
        assert doorman("map", "echo", ":::", "a").stdout == "a\n"
        assert [path.name for path in tmp_path.glob("doorman-map-*")] == [kept.name]
        alive.terminate()
        ended(alive)
    assert [*tmp_path.glob("doorman-map-*")] == []


@pytest.mark.parametrize(
    ("words", "stdin", "code", "message"),
    [
        (("gzip {}", ":::", "a"), "", 2, "no program is named 'gzip {}': give --shell"),
        (("echo",), "a\0b\n", 1, r"'a\x00b' failed: it contains a NUL character"),
        (("echo", "a", "b"), "", 0, "standard input had no line: inputs follow ':::'"),
        (("false",), "x" * 110_000 + "\n", 1, "... (110000 characters) failed: 1"),
    ],
    ids=["a quoted command line", "NUL", "no input", "a long input"],
)
def test_a_common_mistake_leads_to_one_line(words: tuple[str, ...], stdin: str, code: int, message: str) -> None:
    done = doorman("map", "--table", "none", *words, stdin=stdin)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False)
    assert message in done.stderr
    assert max(map(len, done.stderr.splitlines())) < 300


def test_a_missing_temporary_folder_is_reported(monkeypatch, capsys) -> None:
    def missing(*_: object, **__: object) -> str:
        raise FileNotFoundError(2, "No usable temporary directory found")

    monkeypatch.setattr("tempfile.gettempdir", missing)
    assert main(["map", "echo", ":::", "a"]) == 2
    assert "set TMPDIR to a folder" in capsys.readouterr().err
