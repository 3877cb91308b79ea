"""`doorman up`: prefixed lines, restarts, an ordered stop, and errors in its files."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path

import pytest
from commands import DOORMAN, doorman, ended, line_of, running, started, until_seen
from waiting import DEADLINE

pytestmark = pytest.mark.usefixtures("runtime_folder")


def plan(folder: Path, text: str, name: str = "doorman.toml") -> str:
    (folder / name).write_text(text)
    return str(folder / name)


def test_lines_stand_behind_the_names_of_their_processes(tmp_path: Path) -> None:
    file = plan(
        tmp_path,
        """
        [web]
        command = "echo $GREETING; echo oops >&2"
        restart = "temporary"
        env = { GREETING = "hello" }
        [printer]
        command = ["python3", "-c", "print('two words')"]
        restart = "transient"
        processes = 2
        """,
    )
    done = doorman("up", file)
    assert done.returncode == 0
    assert sorted(done.stdout.splitlines()) == [
        "printer.1 | two words",
        "printer.2 | two words",
        "web       | hello",
    ]
    assert sorted(done.stderr.splitlines()) == [
        "printer.1 | (done: 0)",
        "printer.2 | (done: 0)",
        "web       | (done: 0)",
        "web       | oops",
    ]


def test_a_procfile_is_enough_and_its_folder_is_theirs(tmp_path: Path) -> None:
    (tmp_path / "here").touch()
    with started("up", plan(tmp_path, "lister: ls; sleep 1000\n", "Procfile")) as process:
        assert {line_of(process), line_of(process)} == {"lister | Procfile", "lister | here"}
        process.send_signal(signal.SIGTERM)
        assert ended(process)[0] == 0


def test_a_procfile_of_a_web_application(tmp_path: Path) -> None:
    lines = [
        "release: touch released",
        "web: cd . && echo $PORT $FROM",
        "clock: exec echo $PORT",
        "limit: ulimit -n >&2",
    ]
    (tmp_path / ".env").write_text("FROM='a file'\nPORT=7000\n")
    file = tmp_path / "Procfile"
    file.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(lines).encode())
    done = doorman("up", str(file))
    assert set(done.stdout.splitlines()) == {"web   | 7000 a file", "clock | 7100"}
    assert "'release' is not started; run it once per deployment: touch released" in done.stderr
    assert "(done: 0; given up, and all end: it would be restarted more than 5 times" in done.stderr
    assert not (tmp_path / "released").exists()
    (tmp_path / "other").write_text("FROM=other")
    done = doorman("up", "--env-file", str(tmp_path / "other"), str(file))
    assert set(done.stdout.splitlines()) == {"web   | 5000 other", "clock | 5100"}
    assert doorman("up", "--env-file", str(tmp_path / "none"), str(file)).returncode == 2


def test_each_program_has_its_own_end(tmp_path: Path) -> None:
    text = """
    [gentle]
    command = "trap 'echo int; exit' INT; trap '' TERM; echo up; while :; do sleep 0.05; done"
    stop_signal = "int"
    [deaf]
    command = "trap '' TERM; umask; echo up; while :; do sleep 0.05; done"
    grace = 0.1
    umask = "027"
    """
    with started("up", "--grace", "100", plan(tmp_path, text)) as process:
        assert {line_of(process) for _ in range(3)} == {"gentle | up", "deaf   | up", "deaf   | 0027"}
        process.terminate()
        code, output, errors = ended(process)
    assert (code, output) == (0, "gentle | int\n")
    assert "deaf   | (cancelled: SIGKILL)" in errors


def test_a_process_that_ends_is_restarted(tmp_path: Path) -> None:
    text = "[flaps]\ncommand = 'echo $$; read line < fifo; exit 3'\nbackoff = 0.01\n"
    script = f"mkfifo {tmp_path}/fifo"
    assert doorman("run", "--", "sh", "-c", script).returncode == 0
    with started("up", "--name", "u", plan(tmp_path, text)) as process:
        pids = []
        for restarts in range(3):
            pids.append(int(line_of(process).split(" | ")[1]))
            [task] = until_seen("u", running).tasks
            assert task.identity is not None
            assert (task.identity.pid, task.restarts) == (pids[-1], restarts)
            (tmp_path / "fifo").write_text("go\n")
        pids.append(int(line_of(process).split(" | ")[1]))
        assert len(set(pids)) == 4
        process.terminate()
        code, _, errors = ended(process)
        assert (code, errors.count("failed: 3; again in")) == (0, 3)


def test_too_many_restarts_stop_all_programs(tmp_path: Path) -> None:
    text = "[stays]\ncommand = 'sleep 1000'\n[flaps]\ncommand = 'false'\nintensity = 2\nbackoff = 0.01\n"
    done = doorman("up", plan(tmp_path, text))
    assert done.returncode == 1
    assert "flaps | (failed: 1; given up, and all end: it would be restarted more than 2 times" in done.stderr
    assert "stays | (cancelled: SIGTERM)" in done.stderr


def test_a_task_that_waits_for_its_restart_is_shown_and_can_be_stopped(tmp_path: Path) -> None:
    """`doorman ps` shows the waiting task with its attempt and the reason."""
    text = "[flaps]\ncommand = 'false'\nbackoff = 1000\n[stays]\ncommand = 'sleep 1000'\n"
    with started("up", "--name", "u", plan(tmp_path, text)) as process:
        view = until_seen("u", lambda view: view.waiting == 1)
        [flaps] = [task for task in view.tasks if task.name == "flaps"]
        assert (flaps.state, flaps.attempt) == ("waiting", 1)
        assert flaps.why is not None
        assert doorman("stop", "u/flaps").returncode == 0
        assert [task.name for task in until_seen("u", lambda view: view.waiting == 0).tasks] == ["stays"]
        process.terminate()
        code, _, errors = ended(process)
        assert (code, "flaps | (cancelled)" in errors) == (0, True)


def test_a_process_that_ends_during_the_stop_is_not_restarted(tmp_path: Path) -> None:
    """Also if other programs are stopped first."""
    script = "trap 'touch message; sleep 0.3; exit 0' TERM; echo up; sleep 1000 & wait"
    text = f"""
        [first]
        command = ["sh", "-c", "echo up; until [ -e message ]; do sleep 0.01; done; echo $$ >> ended"]
        [last]
        command = ["sh", "-c", "{script}"]
        """
    with started("up", plan(tmp_path, text)) as process:
        assert {line_of(process).split()[-1] for _ in range(2)} == {"up"}
        process.terminate()
        code, _, errors = ended(process)
    assert (code, len((tmp_path / "ended").read_text().split())) == (0, 1)
    assert "first | (done: 0)" in errors


def test_a_failure_that_is_not_repaired_shows_in_the_exit_code(tmp_path: Path) -> None:
    done = doorman("up", plan(tmp_path, "[once]\ncommand = 'false'\nrestart = 'temporary'\n"))
    assert (done.returncode, done.stderr) == (1, "once | (failed: 1)\n")


def test_they_stop_in_reverse_order_one_after_the_other(tmp_path: Path) -> None:
    script = "trap 'sleep 0.2; echo {} >> ended; exit 0' TERM; echo up; sleep 1000 & wait"
    names = ("first", "second", "third")
    text = "".join(f"""[{name}]\ncommand = ["sh", "-c", "{script.format(name)}"]\n""" for name in names)
    with started("up", "--name", "u", plan(tmp_path, text)) as process:
        assert {line_of(process).split()[-1] for _ in range(3)} == {"up"}
        until_seen("u", lambda view: len(view.tasks) == 3 and running(view))
        process.terminate()
        code, _, errors = ended(process)
    assert (code, (tmp_path / "ended").read_text().split()) == (0, ["third", "second", "first"])
    assert errors.count("cancelled: 0") == 3


def test_a_second_signal_waits_for_no_grace(tmp_path: Path) -> None:
    command = """["sh", "-c", "trap '' TERM; echo up; exec sleep 1000"]"""
    with started("up", "--grace", "1000", plan(tmp_path, f"[deaf]\ncommand = {command}\n")) as process:
        assert line_of(process) == "deaf | up"
        process.terminate()
        process.send_signal(signal.SIGINT)
        assert process.wait(DEADLINE) in {0, -signal.SIGINT}  # whichever signal it handled first
        assert "cancelled: SIGKILL" in ended(process)[2]


def test_closed_pipes_leave_the_processes_their_grace(tmp_path: Path) -> None:
    trap = "echo x; echo y >&2; sleep 0.5; echo well > ended; exit 0"
    command = f"""["sh", "-c", "trap '{trap}' TERM; echo up; while sleep 0.01; do echo on; done"]"""
    words = [*DOORMAN, "up", plan(tmp_path, f"[slow]\ncommand = {command}\n")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        assert line_of(process) == "slow | up"
        assert process.stdout is not None
        process.stdout.close()
        assert process.wait(DEADLINE) == 0
    assert (tmp_path / "ended").read_text() == "well\n"


def test_one_of_them_is_stopped_for_good(tmp_path: Path) -> None:
    with started("up", "--name", "u", plan(tmp_path, "a: sleep 1000\nb: sleep 1001\n", "Procfile")) as process:
        until_seen("u", lambda view: len(view.tasks) == 2 and running(view))
        assert doorman("stop", "u/a").returncode == 0
        assert [task.name for task in until_seen("u", running).tasks] == ["b"]
        assert doorman("stop", "u").returncode == 0
        assert ended(process)[0] == 0


def test_output_is_kept_in_files_too(tmp_path: Path) -> None:
    file = plan(tmp_path, "[a]\ncommand = 'echo hello'\nrestart = 'temporary'\n")
    assert doorman("up", "--log-path", str(tmp_path / "logs"), file).stdout == "a | hello\n"
    assert [path.read_text() for path in (tmp_path / "logs").glob("a-*.out")] == ["hello\n"]


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("doorman.toml", "[a]\ncommand = 'x'\nrestat = 'never'\n", "did you mean 'restart'?"),
        ("doorman.toml", "[a]\ncommand = 'x'\nenv = {'A=B' = 'c'}\n", "a name without '=', not 'A=B'"),
        ("doorman.toml", '[a]\ncommand = ["a\\u0000"]\n', "character NUL"),
        ("doorman.toml", "[a\n", "doorman.toml: "),
        ("pyproject.toml", "[project]\n", "it has no [tool.doorman]"),
        ("pyproject.toml", "tool = 1\n", "it has no [tool.doorman]"),
        ("Procfile", "nonsense", "line 1: 'nonsense' is not 'name: command'"),
    ],
)
def test_an_invalid_file_is_reported(tmp_path: Path, name: str, text: str, message: str) -> None:
    done = doorman("up", plan(tmp_path, text, name))
    assert (done.returncode, done.stdout) == (2, "")
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_missing_file_is_reported(tmp_path: Path) -> None:
    assert "cannot read /nowhere: No such file" in doorman("up", "/nowhere").stderr
    assert "there is no doorman.toml" in doorman("up", cwd=tmp_path).stderr
    for text, message in (("tool = 1\n", "there is no doorman.toml"), ("[a\n", "doorman: pyproject.toml: ")):
        plan(tmp_path, text, "pyproject.toml")
        assert message in doorman("up", cwd=tmp_path).stderr
