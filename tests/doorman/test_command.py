"""Commands and wrappers: programs as tasks, and the process that is recorded for them."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.errors import TaskCancelled, TaskExpired, WorkerDied

FORKING = ("sh", "-c", '"$@"; exit $?', "sh")
"""Starts what follows as a child of its own, and leaves with its exit code."""
REPLACING = ("sh", "-c", 'exec "$@"', "sh")
"""Becomes what follows."""
LEAVING = ("setsid", "--fork", "--wait")
"""Starts what follows in a session and a group of its own, where a signal to the wrapper's group does not reach it."""


@pytest.fixture
def manager(short_path) -> Iterator[ProcessManager]:
    with ProcessManager(f"unix://{short_path}/m", log_path=short_path / "logs") as manager:
        yield manager


def ended(manager: ProcessManager, task: Task) -> Task:
    manager.add_task(task)
    manager.run(DEADLINE)
    assert task.done()
    return task


def run_until_it_speaks(manager: ProcessManager, task: Task) -> None:
    """Tick until the task's own code has written something: another task waits for that."""
    manager.add_task(task)
    manager.add_task(Task(str, can_run=lambda: bool(task.output and task.output[0].stat().st_size))).result(DEADLINE)


def who() -> str:
    """Return a program text that says which process it is, as its identity would."""
    return (
        "import os, sys; fd = os.pidfd_open(os.getpid()); print(os.getpid(), os.fstat(fd).st_ino, flush=True); "
        "import signal; signal.pause() if sys.argv[1:] == ['stay'] else None"
    )


def said(task: Task) -> tuple[int, int]:
    pid, inode = task.output[0].read_text().split()
    return int(pid), int(inode)


def test_a_command_that_ends_well_returns_0(manager):
    task = ended(manager, Task.command(["true"]))
    assert task.result() == 0
    assert (task.state, task.exit_code) == (State.DONE, 0)


def test_a_command_with_another_exit_code_died(manager):
    task = ended(manager, Task.command(["sh", "-c", "exit 3"]))
    with pytest.raises(WorkerDied, match="exit code 3") as raised:
        task.result()
    assert raised.value.exit_code == task.exit_code == 3
    assert task.state is State.FAILED


def test_a_command_that_is_killed_died(manager):
    task = ended(manager, Task.command(["sh", "-c", "kill -9 $$"]))
    with pytest.raises(WorkerDied, match="SIGKILL"):
        task.result()
    assert task.signal == signal.SIGKILL


def test_a_program_that_is_not_found_is_told_as_the_shells_tell_it(manager):
    task = ended(manager, Task.command(["no-such-program-anywhere"]))
    with pytest.raises(WorkerDied) as raised:
        task.result()
    assert raised.value.exit_code == 127
    assert "cannot run no-such-program-anywhere" in task.output[1].read_text()


def test_the_identity_of_a_command_is_the_programs_own(manager):
    task = ended(manager, Task.command([sys.executable, "-c", who()]))
    assert said(task) == (task.identity.pid, task.identity.inode)


def test_a_command_gets_its_environment_folder_and_words_as_they_are(manager, tmp_path):
    words = ["$HOME", "two words", "*", ""]
    show = "import os, sys; print(ascii([sys.argv[1:], os.getcwd(), os.environ['WORD'], 'PATH' in os.environ]))"
    task = Task.command([sys.executable, "-c", show, *words], cwd=tmp_path, env={"WORD": "said"})
    ended(manager, task).result()
    assert task.output[0].read_text() == f"{[words, str(tmp_path), 'said', False]}\n"


def test_a_command_has_no_descriptors_of_the_manager(manager):
    show = "import os; print(sorted(int(fd) for fd in os.listdir('/proc/self/fd') if int(fd) > 2))"
    task = ended(manager, Task.command([sys.executable, "-c", show]))
    assert task.output[0].read_text() == "[3]\n"  # The listing's own.


@pytest.mark.parametrize("wrapper", [("nice", "-n", "5"), REPLACING, FORKING, LEAVING])
@pytest.mark.parametrize("kind", ["callable", "command"])
def test_the_identity_behind_a_wrapper_is_the_tasks_own_process(manager, wrapper, kind):
    text = who()
    if kind == "command":
        task = Task.command([sys.executable, "-c", text], wrapper=wrapper)
    else:
        task = Task(exec, text, wrapper=wrapper)
    ended(manager, task).result()
    assert said(task) == (task.identity.pid, task.identity.inode)


def test_a_wrapper_takes_effect(manager):
    task = Task(os.nice, 0, wrapper=("nice", "-n", "5"))
    assert ended(manager, task).result() == min(os.nice(0) + 5, 19)


def test_a_forking_wrapper_is_a_parent_of_the_task(manager):
    task = ended(manager, Task(os.getppid, wrapper=FORKING))
    assert task.result() != task.identity.pid
    show = Task(lambda: Path(f"/proc/{os.getppid()}/cmdline").read_bytes(), wrapper=FORKING)
    assert ended(manager, show).result().startswith(b"sh\0-c\0")


@pytest.mark.parametrize("wrapper", [REPLACING, FORKING])
def test_results_and_exceptions_pass_a_wrapper(manager, wrapper):
    assert ended(manager, Task(divmod, 17, 5, wrapper=wrapper)).result() == (3, 2)
    with pytest.raises(ZeroDivisionError):
        ended(manager, Task(divmod, 1, 0, wrapper=wrapper)).result()


@pytest.mark.parametrize("wrapper", [(), REPLACING, FORKING])
def test_a_command_behind_a_wrapper_keeps_its_exit_code(manager, wrapper):
    task = ended(manager, Task.command(["sh", "-c", "exit 3"], wrapper=wrapper))
    assert task.exit_code == 3
    assert isinstance(task.exception(), WorkerDied)


def test_environment_and_folder_pass_a_wrapper(manager, tmp_path):
    def here() -> tuple[str, str | None]:
        return str(Path.cwd()), os.environ.get("WORD")

    env = {"WORD": "said", "PATH": os.environ["PATH"]}
    task = Task(here, cwd=tmp_path, env=env, wrapper=FORKING)
    assert ended(manager, task).result() == (str(tmp_path), "said")


def test_a_wrapper_that_is_not_found_is_told(manager):
    task = ended(manager, Task(print, wrapper=["no-such-wrapper-anywhere"]))
    with pytest.raises(WorkerDied) as raised:
        task.result()
    assert raised.value.exit_code == 127
    assert task.identity is None


def test_a_wrapper_that_runs_nothing_fails_the_task(manager):
    task = ended(manager, Task(print, wrapper=["true"]))
    with pytest.raises(WorkerDied, match="exit code 0"):
        task.result()
    assert task.identity is None
    task = ended(manager, Task.command(["true"], wrapper=["true"]))
    with pytest.raises(WorkerDied):
        task.result()


@pytest.mark.parametrize("wrapper", [(), REPLACING, FORKING, LEAVING])
def test_cancelling_ends_the_program_and_its_wrapper(manager, wrapper):
    task = Task.command([sys.executable, "-c", who(), "stay"], wrapper=wrapper)
    run_until_it_speaks(manager, task)
    with task.identity.open() as process:
        assert task.cancel()
        with pytest.raises(TaskCancelled):
            task.result(DEADLINE)
        assert process.wait(DEADLINE)


def test_a_command_expires(manager):
    task = ended(manager, Task.command(["sleep", "1000"], expires_in=0.1))
    with pytest.raises(TaskExpired):
        task.result()
    assert task.state is State.EXPIRED


def test_a_command_is_retried(manager, tmp_path):
    text = f"echo x >> {tmp_path}/tries; test $(wc -l < {tmp_path}/tries) -eq 3"
    task = ended(manager, Task.command(["sh", "-c", text], retries=5))
    assert task.result() == 0
    assert task.attempt == 3
