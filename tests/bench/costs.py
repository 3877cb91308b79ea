"""Costs: what a fresh process takes beside its time: memory of its own, and the share of its proof."""

from __future__ import annotations

import atexit
import os
import secrets
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Final

from bench.cases import Case, Table, location
from bench.processes import alone
from bench.work import double

MEMORY = Table("memory that a waiting task's process shares with no other", "MiB", less_is_better=True)
PROOF = Table("identity checks: their part of a fresh process's CPU time, on all sides", "%", less_is_better=True)
TASKS = 400
WAITS = 30.0
"""Seconds within which a task is to be there, or to have ended."""
PAUSE = 0.05
"""Seconds between two looks at a process."""
CALM = 10
"""Looks in a row that see the same."""
SPENT: Final = "BENCH_SPENT"
"""The variable of the environment that names the file of what was spent in other processes."""
WIDTH: Final = 8
"""Bytes of one number there."""


def cases() -> list[Case]:
    """Return the rows."""
    schemes = ("unix", "zmq+ipc")
    return [
        *(Case(MEMORY, f"doorman {scheme}, waiting", partial(cost, "unique", scheme), bound=4.0) for scheme in schemes),
        *(Case(PROOF, f"doorman {scheme}, checks", partial(cost, "proof", scheme), bound=5.0) for scheme in schemes),
    ]


def cost(function: str, scheme: str) -> float:
    """Run a function of this module in an interpreter of its own."""
    return alone(function, scheme, module="costs")


def unique(scheme: str) -> float:
    """Return the MiB that a task's process has for itself while it waits, once that changes no more."""
    from doorman import ProcessManager, Task

    with (
        tempfile.TemporaryDirectory(prefix="remit-") as folder,
        ProcessManager(location(scheme, folder)) as manager,
    ):
        assert manager.add_task(Task(double, 1)).result(WAITS) == double(1)
        task = manager.add_task(Task(time.sleep, 2 * WAITS))
        used: list[int] = []
        deadline = time.monotonic() + WAITS
        while len(used) < CALM or len(set(used[-CALM:])) > 1:
            assert time.monotonic() < deadline, f"{task} does not settle: {used}"
            manager.tick()
            manager.wait(PAUSE)
            if task.identity is not None:
                used.append(private(task.identity.pid))
                time.sleep(PAUSE)
        manager.cancel(task)
        manager.run(WAITS)
    return used[-1] / (1 << 20)


def private(pid: int) -> int:
    """Return the bytes of a process that no other one has mapped."""
    lines = (line.split() for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines())
    return sum(int(words[1]) * 1024 for words in lines if words[0] in ("Private_Clean:", "Private_Dirty:"))


# -- the share of the proof ------------------------------------------------------------------------------------


class Meter:
    """Sums the CPU time of this thread in functions, each counted once however they call each other."""

    def __init__(self) -> None:
        self.spent = 0
        self._within = False

    def metered(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if self._within:
                return function(*args, **kwargs)
            self._within = True
            start = time.thread_time_ns()
            try:
                return function(*args, **kwargs)
            finally:
                self.spent += time.thread_time_ns() - start
                self._within = False

        return call

    def attach(self, owner: Any, *names: str) -> None:
        """Count what an object's functions take from now on."""
        for name in names:
            setattr(owner, name, self.metered(getattr(owner, name)))

    def write(self) -> None:
        """Leave what was counted to whoever adds it all up."""
        with Path(os.environ[SPENT]).open("ab", buffering=0) as file:
            file.write(self.spent.to_bytes(WIDTH, "big"))


METER = Meter()


def prepare(scheme: str) -> Callable[[Any], int]:
    """Do what the worker's own `prepare` does, with the checks of the zygote and of its children counted."""
    from doorman import identity
    from doorman._worker import main as worker

    run = worker.prepare(scheme)
    METER.attach(os, "pidfd_open")
    METER.attach(identity, "hello")
    METER.attach(identity.Credential, "sign", "check")
    METER.spent = 0
    atexit.register(METER.write)  # The zygote's own; a child starts without it.

    nothing = METER.metered(int)

    def counted(order: Any) -> int:
        nothing()  # The meter's own memory is not the checks' to copy.
        METER.spent = 0
        code = run(order)
        METER.write()
        return code

    return counted


def count_checks() -> None:
    """Count from now on what the manager does to believe its processes."""
    from doorman import identity, process
    from doorman._scheduler import handshake as reception
    from remit.transports import stream_link as streamlink

    METER.attach(reception, "verify")
    METER.attach(identity.Credential, "sign", "check")
    METER.attach(process.Process, "__init__")
    METER.attach(secrets, "token_bytes")
    METER.attach(streamlink, "peer_credentials")


def used_by(pid: int) -> float:
    """Return the seconds of CPU time that a process and the children that it has waited for have used."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")


def proof(scheme: str) -> float:
    """Return the percentage of the CPU time of manager, zygote and children that is spent in proofs."""
    from doorman import ProcessManager, Task
    from doorman.launcher.zygote import ZygoteLauncher

    with tempfile.TemporaryDirectory(prefix="remit-") as folder:
        os.environ[SPENT] = str(Path(folder) / "spent")
        launcher = ZygoteLauncher(entry=f"bench.costs:prepare:{scheme}")
        count_checks()
        with ProcessManager(location(scheme, folder), launcher=launcher) as manager:
            assert manager.add_task(Task(double, 1)).result(WAITS) == double(1)
            zygote = launcher.pid
            assert zygote is not None
            begun = METER.spent, time.process_time() + used_by(zygote)
            tasks = [manager.add_task(Task(double, number)) for number in range(TASKS)]
            manager.run(WAITS * 4)
            assert [task.result(0) for task in tasks] == [double(number) for number in range(TASKS)]
            here, all_told = METER.spent - begun[0], time.process_time() + used_by(zygote) - begun[1]
        there = Path(os.environ[SPENT]).read_bytes()
    numbers = [int.from_bytes(there[at : at + WIDTH], "big") for at in range(0, len(there), WIDTH)]
    assert len(numbers) == TASKS + 2, "each child's and the zygote's"
    return 100 * (here + sum(numbers)) / 1e9 / all_told
