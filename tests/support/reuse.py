"""Reuse: numbers of ended processes given to strangers, and hosts with the same numbers; in namespaces of their own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

from chores import stay
from impostors import Delayed
from internals import attempt_of
from launching import hear
from managing import tick_until
from namespaces import LAST_PID, born_as, ended_by, gone

from doorman import ProcessManager, Task
from doorman.errors import IdentityRefused
from doorman.identity import Credential, Identity, hello, verify
from doorman.launcher import Exited, Launched, LaunchFailed, Order
from doorman.launcher.command import CommandLauncher
from doorman.launcher.zygote import ZygoteLauncher
from doorman.process import Process, start_time

TRIES_EACH = 50
"""Tries for each start in the same hundredth of a second: a busy machine is slow to start a process."""
ATTEMPTS_EACH = 3
"""Tries for each reuse: now and then another process of the namespace takes the number first."""


def of_tasks(wanted: int) -> dict[str, int]:
    """End a task's process, give its number to a stranger, then stop the task: TERM, KILL, and close its manager."""
    counts = dict.fromkeys(("reused", "same inode", "hit", "opened", "state"), 0)
    launcher = Delayed(ZygoteLauncher(entry="doorman._worker.main:prepare:unix"))
    with _place() as place, ProcessManager(f"unix://{place}/m", launcher=launcher, grace=0.0) as manager:
        for _ in range(ATTEMPTS_EACH * wanted):
            if counts["reused"] == wanted:
                break
            task = manager.add_task(Task(stay))
            tick_until(manager, lambda task=task: task.identity is not None)
            identity = task.identity
            assert identity is not None
            launcher.holds = lambda event: not isinstance(event, Launched)
            with identity.open() as process:
                process.signal(signal.SIGKILL)
            gone(identity.pid)
            stranger = born_as(identity.pid)
            if stranger is not None:
                counts["reused"] += 1
                with Process.open(stranger) as other:
                    counts["same inode"] += other.inode == identity.inode
                counts["opened"] += _opens(identity)
                manager.cancel(task)
                manager.tick()  # the grace is over at once: KILL
            launcher.holds = lambda event: False
            tick_until(manager, task.done)
            if stranger is not None:
                counts["state"] += task.state == "cancelled"
                counts["hit"] += ended_by(stranger) != signal.SIGUSR1
    return counts


def of_the_same_tick(wanted: int) -> dict[str, int]:
    """End a process and give its number to a stranger, until ``wanted`` strangers have the same start time, too."""
    counts = dict.fromkeys(("same start", "same inode", "opened", "hit"), 0)
    for _ in range(TRIES_EACH * wanted):
        if counts["same start"] == wanted:
            break
        with Process.open(os.posix_spawn("/bin/sleep", ["sleep", "1000"], {}, setpgroup=0)) as process:
            credential = Credential("a")
            identity = verify(signed_by(process, credential), credential, process)
            process.signal(signal.SIGKILL)
            os.waitpid(process.pid, 0)
            stranger = born_as(process.pid)
            if stranger is None:
                continue
            if start_time(stranger) == identity.start_time:
                counts["same start"] += 1
                with Process.open(stranger) as other:
                    counts["same inode"] += other.inode == identity.inode
                counts["opened"] += _opens(identity)
                process.signal(signal.SIGTERM)
                process.signal_group(signal.SIGKILL)
            counts["hit"] += ended_by(stranger) != signal.SIGUSR1
    return counts


def signed_by(process: Process, credential: Credential) -> dict[str, Any]:
    """Return the hello that a process would say which does not speak."""
    words = hello(credential) | {"pid": process.pid, "inode": process.inode, "started": process.start_time}
    return words | {"proof": credential.proof(words)}


def of_stolen_children(wanted: int) -> dict[str, int]:
    """Let somebody else reap a launcher's child, and the next child of this process get its number."""
    counts = dict.fromkeys(("reused", "hit", "reaped", "claimed to know"), 0)
    with CommandLauncher(("sh", "-c", "exec sleep 1000")) as launcher:
        for number in range(ATTEMPTS_EACH * wanted):
            if counts["reused"] == wanted:
                break
            launcher.launch(Order(f"{number}", b"s"))
            [event] = hear(launcher, bool)
            assert isinstance(event, Launched)
            process = event.process
            process.signal(signal.SIGKILL)
            os.waitpid(process.pid, 0)
            stranger = born_as(process.pid)
            [ended] = hear(launcher, bool)
            assert isinstance(ended, Exited)
            counts["claimed to know"] += (ended.exit_code, ended.signal) != (None, None)
            if stranger is not None:
                counts["reused"] += 1
                process.signal(signal.SIGTERM)
                process.signal_group(signal.SIGKILL)
                counts["reaped"] += not Path(f"/proc/{stranger}").exists()
                counts["hit"] += ended_by(stranger) != signal.SIGUSR1
            process.close()
    return counts


def of_children_not_held_yet(wanted: int) -> dict[str, int]:
    """Between start and hold: let the child end, somebody else reap it, and a child of another get its number."""
    counts = dict.fromkeys(("reused", "held", "hit"), 0)
    hold = Process.open
    strangers: list[subprocess.Popen[str]] = []

    def too_late(pid: int) -> Process:
        os.waitpid(pid, 0)
        text = f"echo {pid - 1} > {LAST_PID}; sleep 1000 & echo $!; wait $!; echo $?"
        strangers.append(subprocess.Popen(["sh", "-c", text], stdout=subprocess.PIPE, text=True))
        reused.append(int(_line(strangers[-1])) == pid)
        return hold(pid) if reused[-1] else hold(os.getpid())

    with CommandLauncher(("true",)) as launcher:
        for number in range(wanted):
            reused: list[bool] = []
            with patch.object(Process, "open", too_late):
                launcher.launch(Order(f"{number}", b"s"))
            [event] = hear(launcher, bool)
            with strangers.pop() as parent:
                [stranger] = _children(parent.pid)
                with hold(stranger) as process:
                    process.signal(signal.SIGUSR1)
                counts["hit"] += int(_line(parent)) != 128 + signal.SIGUSR1
            counts["reused"] += reused[0]
            counts["held"] += not isinstance(event, LaunchFailed)
    return counts


def of_wrappers(wanted: int) -> dict[str, int]:
    """Give the number of an ended wrapper to a stranger, whose child has the secret and claims descent."""
    counts = dict.fromkeys(("reused", "believed"), 0)
    credential = Credential("a", task="1")
    for _ in range(ATTEMPTS_EACH * wanted):
        if counts["reused"] == wanted:
            break
        wrapper = os.posix_spawn("/bin/true", ["true"], {})
        launched = Process.open(wrapper)
        os.waitpid(wrapper, 0)
        LAST_PID.write_text(str(wrapper - 1))
        with _claimant(credential) as (stranger, words):
            if stranger == wrapper:
                counts["reused"] += 1
                counts["believed"] += _believes(words, Credential("a", credential.secret, "1"), launched)
        launched.close()
    return counts


def of_another_host(pid: int) -> dict[str, bool]:
    """Run a task under this number; tell who it is; be told of one under the same number on another host."""
    with _place() as place, ProcessManager(f"unix://{place}/m") as manager:
        heard: list[dict[str, Any]] = []
        manager.server.add_listener("doorman.hello", heard.append)
        tick_until(manager, manager.add_task(Task(os.getpid)).done)  # the zygote is warm: nobody else takes numbers
        LAST_PID.write_text(str(pid - 1))
        task = manager.add_task(Task(stay))
        tick_until(manager, lambda: task.identity is not None)
        attempt, identity = attempt_of(manager, task), task.identity
        assert identity is not None
        secret = attempt.credential.secret
        print(json.dumps([asdict(identity), heard[-1], secret.hex()]), flush=True)
        other, words, key = json.loads(sys.stdin.readline())
        stranger = Identity(**other)
        credential = Credential(words["attempt"], bytes.fromhex(key), words["task"])
        told = {
            "opened": _opens(stranger),
            "opened without inode": _opens(replace(stranger, inode=None)),
            "believed": _believes(words, credential),
            "same": stranger == identity,
        }
        with identity.open() as process:
            return told | {"alive": process.alive()}


def _line(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline()


def _children(pid: int) -> list[int]:
    return [int(word) for word in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@contextmanager
def _claimant(credential: Credential) -> Iterator[tuple[int, dict[str, Any]]]:
    """Fork a stranger with a child; give its number and the child's hello."""
    reader, writer = os.pipe()
    stranger = os.fork()
    if not stranger:
        if not os.fork():
            os.write(writer, json.dumps(hello(credential)).encode())
        signal.pause()
    words = json.loads(os.read(reader, 65536))
    try:
        yield stranger, words
    finally:
        for pid in (words["pid"], stranger):
            with Process.open(pid) as process:
                process.signal(signal.SIGKILL)
        os.waitpid(stranger, 0)
        os.close(reader)
        os.close(writer)


def _opens(identity: Any) -> bool:
    try:
        identity.open().close()
    except IdentityRefused:
        return False
    return True


def _believes(words: dict[str, Any], credential: Credential, launched: Process | None = None) -> bool:
    try:
        verify(words, credential, launched)
    except IdentityRefused:
        return False
    return True


@contextmanager
def _place() -> Iterator[str]:
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        yield folder
