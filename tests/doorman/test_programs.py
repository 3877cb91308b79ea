"""What a started program inherits, and how a program ends that cannot be started."""

from __future__ import annotations

import contextlib
import logging
import os
import pickle
import re
import resource
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from managing import tick_until
from waiting import DEADLINE

from doorman import Crew, ProcessExecutor, ProcessManager, State, SynchronousManager, Task
from doorman.errors import PoolFailed, ProgramNotRun, WorkerDied
from doorman.launcher.command import CommandLauncher

STATUS = ["grep", "-E", "^Sig(Ign|Blk):", "/proc/self/status"]
DEFAULT = "SigBlk:\t0000000000000000\nSigIgn:\t0000000000000000\n"
UNUSUAL = """
    import signal
    for number in (signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGXFSZ, signal.SIGTSTP, signal.SIGRTMIN):
        signal.signal(number, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR2, signal.SIGTERM, signal.SIGALRM])
"""


def script(text: str, *, limit: int | None = None, timeout: float = DEADLINE) -> subprocess.CompletedProcess[str]:
    """Run a Python script, perhaps with a soft limit of open descriptors."""
    words = [sys.executable, "-c", textwrap.dedent(text)]
    if limit is not None:
        words = ["sh", "-c", f'ulimit -Sn {limit}; exec "$@"', "sh", *words]
    return subprocess.run(words, capture_output=True, text=True, timeout=timeout, check=False)


def signals_of(done: subprocess.CompletedProcess[str]) -> str:
    # glibc keeps 32 and 33 for itself: a program cannot change them, and posix_spawn or a parent may have them ignored.
    return re.sub("[0-9a-f]{16}", lambda found: f"{int(found[0], 16) & ~(3 << 31):016x}", done.stdout)


@pytest.mark.parametrize("wrapper", ["()", "('nice',)", "('sh', '-c', 'exec \"$@\"', 'sh')"])
@pytest.mark.parametrize("launcher", ["None", "CommandLauncher()"])
def test_a_program_starts_with_default_signals(wrapper, launcher):
    done = script(f"""{UNUSUAL}
    from doorman import ProcessManager, Task
    from doorman.launcher.command import CommandLauncher
    with ProcessManager(launcher={launcher}) as manager:
        manager.add_task(Task.command({STATUS}, wrapper={wrapper})).result({DEADLINE})
    """)
    assert signals_of(done) == DEFAULT, done.stderr


@pytest.mark.parametrize("arguments", [["run", "--", *STATUS], ["map", *STATUS[:3], "{}", ":::", STATUS[3]]])
def test_a_program_of_a_command_starts_with_default_signals(runtime_folder, arguments):
    done = script(f"""{UNUSUAL}
    import sys
    from doorman.cli import main
    sys.exit(main({arguments!r}))
    """)
    assert signals_of(done) == DEFAULT, done.stderr


def test_a_pipeline_in_a_program_ends(runtime_folder):
    words = ["run", "--", "bash", "-c", "set -o pipefail; seq 1000000 | head -1; exit $?"]
    done = subprocess.run(
        [sys.executable, "-m", "doorman", *words], capture_output=True, text=True, timeout=DEADLINE, check=False
    )
    assert (done.returncode, done.stdout) == (128 + signal.SIGPIPE, "1\n")


def dispositions() -> dict[int, object]:
    numbers = signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}
    return {int(number): signal.getsignal(number) for number in numbers}


def test_a_callable_has_the_dispositions_of_python(local):
    expected = dict.fromkeys(dispositions(), signal.SIG_DFL)
    expected |= {
        signal.SIGPIPE: signal.SIG_IGN,
        signal.SIGXFSZ: signal.SIG_IGN,
        signal.SIGINT: signal.default_int_handler,
    }
    assert local.add_task(Task(dispositions)).result(DEADLINE) == expected


# -- descriptors ---------------------------------------------------------------------------------------------------


def test_many_processes_need_no_higher_soft_limit_and_get_the_original_one():
    done = script(
        f"""
    from doorman import ProcessManager, Task
    import resource
    def limit(): return resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    lines = []
    with ProcessManager(on_output=lambda task, stream, line: lines.append(line)) as manager:
        for _ in range(20):
            manager.add_task(Task.command(["sh", "-c", "ulimit -n; exec sleep 1000"]))
        while len(lines) < 20:
            manager.tick()
            manager.wait(1.0)
        print({{line.strip() for line in lines}}, limit() > 64)
        manager.kill()
        manager.run()
        print(manager.add_task(Task(limit)).result({DEADLINE}))
    """,
        limit=48,
    )
    assert done.stdout == "{'48'} True\n48\n", done.stderr


def test_the_reason_of_a_wait_is_logged(short_path, monkeypatch, caplog):
    monkeypatch.setattr("doorman._scheduler.run_queue.HOLD_REPORT_S", 0.2)
    monkeypatch.setattr("doorman._scheduler.supervisor.SPARE_DESCRIPTORS", 1 << 40)
    with caplog.at_level(logging.WARNING, "doorman"), ProcessManager(f"unix://{short_path}/m") as manager:
        first = manager.add_task(Task(signal.pause))
        tick_until(manager, lambda: first.state is State.RUNNING)
        task = manager.add_task(Task(abs, -1))
        tick_until(manager, lambda: caplog.records)
        assert "descriptors" in manager.why(task)
        for _ in range(1000):
            manager.tick()
    [record] = [record for record in caplog.records if "have waited" in record.getMessage()]
    assert "1 tasks have waited" in record.getMessage()
    assert "descriptors" in record.getMessage()


@pytest.mark.parametrize("spare", [0, 1, 2])
def test_a_stop_needs_no_descriptors(local, spare):
    words = ["sh", "-c", "(sleep 1000; true) & (sleep 1000; true) & echo up; wait"]
    task = local.add_task(Task.command(words, stream=True))
    tick_until(local, lambda: task.lines)
    held = []
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(map(int, os.listdir("/proc/self/fd"))) + 2, hard))  # noqa: PTH208
    try:
        with contextlib.suppress(OSError):
            while True:
                held.append(os.dup(0))
        for descriptor in held[:spare]:
            os.close(descriptor)
        task.cancel()
        local.run(DEADLINE)
    finally:
        for descriptor in held[spare:]:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert task.state is State.CANCELLED


def test_a_low_hard_limit_lets_one_process_run():
    done = script(
        f"""
    import resource
    from doorman import ProcessManager, Task
    resource.setrlimit(resource.RLIMIT_NOFILE, (28, 28))
    with ProcessManager() as manager:
        tasks = [manager.add_task(Task(abs, -number)) for number in range(4)]
        print([task.result({DEADLINE}) for task in tasks])
    """
    )
    assert done.stdout == "[0, 1, 2, 3]\n", done.stderr


# -- a start that cannot succeed -----------------------------------------------------------------------------------


def interpreters(folder: Path) -> dict[str, object]:
    (folder / "text").write_text("no program")
    (folder / "not executable").write_text("#!/bin/sh\n")
    (folder / "text").chmod(0o755)
    (folder / "loop").symlink_to(folder / "loop")
    return {
        "missing": f"{folder}/gone/bin/python",
        "not executable": f"{folder}/not executable",
        "no format": f"{folder}/text",
        "below a file": f"{folder}/text/python",
        "loop": f"{folder}/loop",
        "empty": "",
        "none": None,
    }


@pytest.mark.parametrize("kind", ["missing", "not executable", "no format", "below a file", "loop", "empty", "none"])
def test_an_interpreter_that_cannot_be_started_fails_the_task(short_path, tmp_path, monkeypatch, kind):
    executable = interpreters(tmp_path)[kind]
    monkeypatch.setattr(sys, "executable", executable)
    with ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task(abs, -2))
        with pytest.raises(WorkerDied, match=r"sys\.executable") as failure:
            task.result(DEADLINE)
        assert task.state is State.FAILED
        assert str(executable) in str(failure.value)


@pytest.mark.parametrize("pool", ["crew", "executor"])
def test_an_interpreter_that_cannot_be_started_fails_the_pool(short_path, monkeypatch, pool):
    monkeypatch.setattr(sys, "executable", "/opt/releases/41/venv/bin/python")
    if pool == "executor":
        with ProcessExecutor(1) as executor, pytest.raises(PoolFailed, match="releases/41"):
            executor.submit(abs, -2).result(DEADLINE)
    else:
        with ProcessManager(f"unix://{short_path}/m") as manager, Crew(manager, 1) as crew:
            future = crew.submit(abs, -2)
            manager.run(DEADLINE)
            with pytest.raises(PoolFailed, match="releases/41"):
                future.result(DEADLINE)


def test_a_wrapper_that_cannot_be_started_fails_the_task(short_path):
    with ProcessManager(f"unix://{short_path}/m", launcher=CommandLauncher(["/no/such/sudo"])) as manager:
        error = manager.add_task(Task(abs, -2)).exception(DEADLINE)
    assert isinstance(error, WorkerDied)
    assert "/no/such/sudo" in str(error)


@pytest.fixture
def programs(tmp_path) -> Path:
    files = {
        "plain": ('echo "$0 $1"', 0o755),
        "locked": ("#!/bin/sh\n", 0o644),
        "binary": ("\0\1\2", 0o755),
        "lost": ("#!/no/such/interpreter\n", 0o755),
    }
    for name, (text, mode) in files.items():
        (tmp_path / name).write_text(text)
        (tmp_path / name).chmod(mode)
    return tmp_path


@pytest.mark.parametrize("kind", ["processes", "synchronous"])
@pytest.mark.parametrize(
    ("name", "code", "reason"),
    [
        ("absent", 127, "No such file"),
        ("locked", 126, "Permission denied"),
        ("binary", 126, "Exec format error"),
        ("lost", 127, "interpreter in its first line"),
        ("plain/below", 126, "Not a directory"),
        ("", 126, "Permission denied"),
    ],
)
def test_a_program_that_cannot_be_run_fails_with_its_name_and_the_reason(
    short_path, programs, kind, name, code, reason
):
    with SynchronousManager() if kind == "synchronous" else ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task.command([f"{programs}/{name}", "x"]))
        with pytest.raises(ProgramNotRun, match=reason) as failure:
            task.result(DEADLINE)
    assert f"{programs}/{name}" in str(failure.value)
    assert task.exit_code == failure.value.exit_code == code
    assert str(pickle.loads(pickle.dumps(failure.value))) == str(failure.value)


def test_a_program_is_searched_in_the_path_of_the_task(local, programs):
    env = {"PATH": f"{programs}/nowhere:{programs}"}
    with pytest.raises(ProgramNotRun, match="cannot run locked: Permission denied"):
        local.add_task(Task.command(["locked"], env=env)).result(DEADLINE)
    with pytest.raises(ProgramNotRun, match="cannot run absent: No such file"):
        local.add_task(Task.command(["absent"], env=env)).result(DEADLINE)
    with pytest.raises(ProgramNotRun, match="cannot run : No such file"):
        local.add_task(Task.command([""], env=env)).result(DEADLINE)
    with pytest.raises(ProgramNotRun, match="sh -c"):
        local.add_task(Task.command(["plain a"], env=env)).result(DEADLINE)


@pytest.mark.parametrize("kind", ["processes", "synchronous"])
def test_a_script_without_a_first_line_is_run_by_the_shell(short_path, programs, kind):
    with SynchronousManager() if kind == "synchronous" else ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task.command([f"{programs}/plain", "a"], stream=True))
        task.result(DEADLINE)
        assert [line.text for line in task.lines] == [f"{programs}/plain a"]


def test_a_folder_that_may_not_be_entered_or_is_gone_is_named(local, tmp_path):
    with pytest.raises(WorkerDied, match=f"does not exist: {tmp_path}/gone"):
        local.add_task(Task(os.getpid, cwd=f"{tmp_path}/gone")).result(DEADLINE)


@pytest.mark.parametrize("launcher", ["None", "CommandLauncher()"])
def test_a_manager_works_on_in_a_deleted_working_directory(launcher):
    done = script(f"""
    import os, sys, tempfile
    from doorman import ProcessManager, Task
    from doorman.launcher.command import CommandLauncher
    sys.path.insert(0, "relative")
    os.chdir(tempfile.mkdtemp())
    with ProcessManager(launcher={launcher}) as manager:
        manager.add_task(Task(abs, -1)).result({DEADLINE})
        os.rmdir(os.getcwd())
        print(manager.add_task(Task(abs, -1, cwd="/")).result({DEADLINE}))
        print(manager.add_task(Task.command(["true"])).result({DEADLINE}))
        for make in (lambda: Task(abs, cwd="below"), lambda: ProcessManager(log_path="logs")):
            try:
                make()
            except FileNotFoundError as error:
                print(error)
    """)
    deleted = "[Errno 2] the working directory of this process was deleted; change to another one\n"
    assert done.stdout == f"1\n0\n{deleted}{deleted}", done.stderr


def test_a_deleted_working_directory_is_the_reason(runtime_folder, tmp_path):
    (tmp_path / "here").mkdir()
    words = f'cd {tmp_path}/here && rmdir ../here && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", words, "sh", sys.executable, "-m", "doorman", "run", "--", "true"],
        capture_output=True,
        text=True,
        timeout=DEADLINE,
        check=False,
    )
    assert done.returncode == 2
    assert "working directory" in done.stderr
    assert "deleted" in done.stderr
