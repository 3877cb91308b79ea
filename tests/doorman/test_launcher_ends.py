"""Launchers: what is left of a task, and of a manager, when it ends: nothing."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from launching import (
    DEADLINE,
    SUPPORT,
    abandoned,
    commands,
    ended,
    exit_of,
    fifo,
    launched,
    opened,
    order,
    until_over,
)

from doorman import ProcessManager, Task
from doorman.launcher import Exited
from doorman.process import Process


@pytest.mark.parametrize("leave", [False, True], ids=["killed", "ended by itself"])
def test_nothing_of_a_task_is_left(zygote, tmp_path, leave):
    """Its group and its daemons end with it, whether it is killed or ends."""
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=leave))
        with launched(zygote) as process:
            assert opened(reader)
            if not leave:
                process.signal(signal.SIGKILL)
            until_over(zygote)
            assert abandoned(reader)


def test_orphans_of_one_task_do_not_end_with_another(zygote, tmp_path):
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(zygote) as process:
            assert opened(reader)
            exit_of(zygote, order("b", "noop"))
            poll = select.poll()
            poll.register(reader, 0)
            assert not poll.poll(0)
            process.signal(signal.SIGKILL)
            until_over(zygote)
            assert abandoned(reader)


def test_orphans_of_a_task_are_its_own_while_it_lives(short_path):
    """Not its zygote's yet: so they count as its load, and it can wait for them."""
    with ProcessManager(f"unix://{short_path}/m") as manager:
        pid, parent, status = manager.add_task(Task(leave_an_orphan)).result(DEADLINE)
        assert (parent, status) == (pid, 5)


def leave_an_orphan():
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        before = os.getpid()
        if not os.fork():
            while os.getppid() == before:
                time.sleep(0.001)
            os.write(writer, str(os.getppid()).encode())
            os._exit(5)
        os._exit(0)
    os.waitpid(child, 0)
    parent = int(os.read(reader, 20))
    return os.getpid(), parent, os.waitstatus_to_exitcode(os.wait()[1])


def test_group_signal_reaches_the_group_through_the_pidfd(zygote, tmp_path):
    with fifo(tmp_path / "held") as reader:
        zygote.launch(order("a", "family", path=str(tmp_path / "held"), leave=False))
        with launched(zygote) as process:
            assert opened(reader)
            assert process.signal_group(signal.SIGTERM)
            assert abandoned(reader)
        assert until_over(zygote)[-1][:3] == ("a", None, signal.SIGTERM)


MANAGER = """
    import os, signal, sys
    sys.path.insert(0, {support!r})
    from launching import *
    launcher = {make}
    for n in range(3):
        launcher.launch(order(f"a{{n}}", {do!r}, path=sys.argv[1], detach=n == 0 and {detach}))
        print(launched(launcher).pid, flush=True)
    print(getattr(launcher, "pid", 0), flush=True)
    signal.pause()
"""


def manager_of(
    make: str, held: Path, *, do: str = "family", detach: bool = False
) -> tuple[subprocess.Popen[str], list[Process]]:
    """Start a manager in a process of its own, with three tasks; return it and its processes, zygote last."""
    script = textwrap.dedent(MANAGER.format(support=SUPPORT, make=make, do=do, detach=detach))
    manager = subprocess.Popen([sys.executable, "-c", script, str(held)], stdout=subprocess.PIPE, text=True)
    pids = [int(manager.stdout.readline()) for _ in range(4)]
    return manager, [Process.open(pid) for pid in pids if pid]


def test_all_ends_when_the_manager_is_killed(tmp_path):
    """Children, their groups, their daemons and the zygote."""
    with fifo(tmp_path / "held") as reader:
        manager, processes = manager_of("zygote_of()", tmp_path / "held")
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in processes] == [True] * 4
        assert abandoned(reader)


def test_detached_child_outlives_its_manager_and_its_zygote_stays_with_it(tmp_path):
    with fifo(tmp_path / "held") as reader:
        manager, (detached, *others, zygote) = manager_of("zygote_of()", tmp_path / "held", detach=True)
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in others] == [True] * 2
        assert detached.alive()
        assert zygote.alive()
        detached.signal(signal.SIGKILL)
        assert ended(zygote)
        assert abandoned(reader)


@pytest.mark.parametrize("inherits", [True, False])
def test_worker_of_its_own_sees_the_end_of_its_manager(tmp_path, inherits):
    with fifo(tmp_path / "held") as reader:
        manager, processes = manager_of(f"commands(inherits={inherits})", tmp_path / "held", do="until_end")
        with manager:
            assert [opened(reader) for _ in range(3)] == [True] * 3
            manager.kill()
        assert [ended(process) for process in processes] == [True] * 3
        assert abandoned(reader)


def test_wrapper_that_is_killed_takes_its_worker_along(tmp_path):
    with commands("sh", "-c", '"$@"; true', "sh") as launcher, fifo(tmp_path / "held") as reader:
        launcher.launch(order("a", "pause", path=str(tmp_path / "held")))
        with launched(launcher) as wrapper:
            assert opened(reader)
            wrapper.signal(signal.SIGKILL)
            assert until_over(launcher)[-1][:3] == ("a", None, signal.SIGKILL)
            assert abandoned(reader)


def test_exit_that_another_reaper_took_is_unknown_and_never_zero():
    with commands() as launcher:
        launcher.launch(order("a", "leave", code=3))
        with launched(launcher) as process:
            assert ended(process)
            os.waitpid(process.pid, 0)
            assert until_over(launcher)[-1] == Exited("a", None, None)


def test_ignored_sigchld_is_told(tmp_path):
    script = textwrap.dedent(f"""
        import signal, sys
        sys.path.insert(0, {SUPPORT!r})
        from launching import *
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)
        with zygote_of() as launcher:
            print(exit_of(launcher, order("a", "leave", code=3)).exit_code)
        with commands("true", "--") as launcher:
            launcher.launch(order("a", "noop"))
            print(until_over(launcher))
    """)
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False, timeout=DEADLINE)
    assert done.stdout.startswith("3\n"), done.stderr
    assert (
        "Exited('a', None, None" in done.stdout.replace("exit_code=", "").replace("signal=", "").replace("attempt=", "")
        or "SIGCHLD" in done.stdout
    )
