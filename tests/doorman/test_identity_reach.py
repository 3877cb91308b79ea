"""The catalogue of identity failures: processes that others start for a wrapper, here or on another host. Entry I2."""

from __future__ import annotations

import signal
import sys
from pathlib import Path

import chores
import pytest
from chores import sign_in, stay
from internals import attempt_of
from managing import tick_until
from namespaces import needs_namespaces
from ssh import log_in
from waiting import DEADLINE

from doorman import ProcessManager, State, Task
from doorman.errors import IdentityRefused, WorkerDied
from doorman.identity import Refusal, boot_id
from doorman.launcher import Reach
from doorman.launcher.command import CommandLauncher
from doorman.process import Process

ASKED = ("sh", "-c", 'exec 3<&0; (setsid "$@" <&3 3<&- &) | cat', "sh")
"""Like `docker exec`: the wrapper lasts as long as the process, which is nobody's child here."""


def another_host(folder: Path) -> tuple[str, ...]:
    """Return what starts a process on a host of another name, as far as the process can see."""
    needs_namespaces("--mount")
    (folder / "boot_id").write_text("0d15ea5e-0000-4000-8000-00000000beef\n")
    there = f'mount --bind {folder}/boot_id /proc/sys/kernel/random/boot_id && exec "$@"'
    return ("unshare", "--mount", "sh", "-c", there, "sh")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is elsewhere has a path of its own; these find there what the tests run."""
    monkeypatch.setenv("PYTHONPATH", str(Path(chores.__file__).parent))


def launcher(prefix: tuple[str, ...], reach: Reach) -> CommandLauncher:
    return CommandLauncher(prefix, inherits=False, reach=reach)


def test_I02_a_process_that_others_start_is_known_where_that_is_allowed(crossing_location, tmp_path):
    with ProcessManager(crossing_location, launcher=launcher(ASKED, Reach.HOST), grace=0.3) as manager:
        told = manager.add_task(Task(sign_in, tmp_path / "told"))
        stays = manager.add_task(Task(stay, tmp_path / "up"))
        assert told.result(DEADLINE) is None
        pid, inode, _ = map(int, (tmp_path / "told").read_text().split())
        assert (told.identity.pid, told.identity.inode) == (pid, inode)
        assert told.identity.strength == "pidfd-inode"
        tick_until(manager, (tmp_path / "up").exists)
        with stays.identity.open() as process:
            assert manager.cancel(stays)
            manager.run(DEADLINE)
            assert process.wait(DEADLINE), "it is signalled itself, wherever its wrapper is"
    assert stays.state is State.CANCELLED
    assert not manager.refused


@pytest.mark.parametrize("detach", [False, True])
def test_I02_its_end_is_its_wrappers(short_path, tmp_path, detach):
    with ProcessManager(f"unix://{short_path}/m", launcher=launcher(ASKED, Reach.HOST)) as manager:
        task = manager.add_task(Task(stay, tmp_path / "up", detach=detach))
        tick_until(manager, (tmp_path / "up").exists)
        with task.identity.open() as process:
            attempt_of(manager, task).launched.signal_group(signal.SIGKILL)
            with pytest.raises(WorkerDied):
                task.result(DEADLINE)
            assert process.wait(DEADLINE), "what it was launched for goes on"


@pytest.mark.parametrize("reach", [Reach.BELOW, Reach.HOST])
def test_I02_a_process_on_another_host_is_refused(short_path, tmp_path, reach):
    started = launcher(another_host(tmp_path), reach)
    with ProcessManager(f"unix://{short_path}/m", launcher=started, hello_timeout=4.0, grace=0.3) as manager:
        task = manager.add_task(Task(stay, tmp_path / "up"))
        with pytest.raises(WorkerDied):
            task.result(DEADLINE)
    assert manager.refused[Refusal.ELSEWHERE.value]
    assert not (tmp_path / "up").exists()


def test_I02_a_process_on_another_host_has_its_word_and_the_secret_where_that_is_allowed(crossing_location, tmp_path):
    started = launcher(another_host(tmp_path), Reach.ANYWHERE)
    with ProcessManager(crossing_location, launcher=started, grace=0.3) as manager:
        power = manager.add_task(Task(pow, 2, 10))
        assert power.result(DEADLINE) == 1024
        assert power.identity.strength == "secret"
        assert power.identity.boot_id != boot_id()
        stays = manager.add_task(Task(stay, tmp_path / "up"))
        tick_until(manager, (tmp_path / "up").exists)
        with pytest.raises(IdentityRefused, match="another host"):
            stays.identity.open()
        with Process.open(int((tmp_path / "up").read_text())) as process:
            manager.cancel(stays)
            manager.run(DEADLINE)
            assert process.wait(DEADLINE), "the end of its input did not tell it of its wrapper's"
    assert stays.state is State.CANCELLED
    assert not manager.refused


def test_I02_a_process_reached_by_ssh_is_known(crossing_location, tmp_path):
    """A real login. The host is this one after all: there is more than its word, since its inode is found here."""
    there = ("env", f"PYTHONPATH={Path(chores.__file__).parent}", sys.executable)
    started = CommandLauncher(log_in(tmp_path), inherits=False, python=there, reach=Reach.ANYWHERE)
    with ProcessManager(crossing_location, launcher=started, grace=0.3) as manager:
        power = manager.add_task(Task(pow, 2, 10))
        assert power.result(DEADLINE) == 1024
        assert power.identity.strength == "pidfd-inode"
        stays = manager.add_task(Task(stay, tmp_path / "up"))
        tick_until(manager, (tmp_path / "up").exists)
        with stays.identity.open() as process:
            manager.cancel(stays)
            manager.run(DEADLINE)
            assert process.wait(DEADLINE)
    assert stays.state is State.CANCELLED
    assert not manager.refused
