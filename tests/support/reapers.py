"""Reapers: managers whose children somebody else waits for, or nobody can; each in a process of its own."""

from __future__ import annotations

import os
import signal
import tempfile
import threading
import time
from typing import Any, NoReturn

from chores import die, stay
from namespaces import gone

from doorman import ProcessManager, Task
from doorman.launcher.command import CommandLauncher


def reap_everything() -> None:
    """Wait for any child of this process, in a thread, as some libraries do."""

    def reap() -> NoReturn:
        while True:
            try:
                os.waitpid(-1, 0)
            except ChildProcessError:
                time.sleep(0.0005)

    threading.Thread(target=reap, daemon=True).start()


def with_foreign_reaper() -> dict[str, Any]:
    """Run tasks from the zygote, then one that is a child of this process, all under a foreign reaper."""
    reap_everything()
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        with ProcessManager(f"unix://{folder}/m") as manager:
            values = [manager.add_task(Task(divmod, number, 3)) for number in range(20)]
            code, killed = manager.add_task(Task(os._exit, 7)), manager.add_task(Task(die, int(signal.SIGTERM)))
            manager.run()
            told: dict[str, Any] = {
                "values": [task.result(0) for task in values] == [divmod(number, 3) for number in range(20)],
                "code": code.exit_code,
                "signal": killed.signal,
            }
        with ProcessManager(f"unix://{folder}/m", launcher=CommandLauncher()) as manager:
            task = manager.add_task(Task(stay))
            while task.identity is None and manager.tick():
                manager.wait(0.02)
            assert task.identity is not None
            with task.identity.open() as process:
                process.signal(signal.SIGKILL)
            gone(task.identity.pid)  # so the other has reaped it, before the manager has looked
            error = task.exception(20)
            return told | {"stolen": [task.state, task.exit_code, task.signal, type(error).__name__]}


def with_children_ignored() -> dict[str, Any]:
    """Ignore SIGCHLD, by which the kernel reaps every child of this process at once."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        with ProcessManager(f"unix://{folder}/m") as manager:
            value, code = manager.add_task(Task(divmod, 7, 3)), manager.add_task(Task(os._exit, 7))
            manager.run()
            told: dict[str, Any] = {"value": value.result(0), "code": code.exit_code}
        with ProcessManager(f"unix://{folder}/m", launcher=CommandLauncher(("true",))) as manager:
            task = manager.add_task(Task(divmod, 7, 3))
            error = task.exception(20)
            return told | {"command": [task.state, type(error).__name__, str(error)]}
