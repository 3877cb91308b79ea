"""A simulated system: a clock, processes held by handles, messages that may be lost, and a journal that survives."""

from __future__ import annotations

import heapq
import itertools
import pickle
import random
import signal
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

from doorman._worker.outcome import TaskOutcome
from doorman.errors import JournalError
from doorman.identity import NODE_ID, Identity, boot_id
from doorman.journal import records
from doorman.launcher import DescendantsLeft, Exited
from doorman.states import State

__all__ = ["Handle", "Journal", "ManagerKilled", "Message", "Process", "Violation", "World", "identity_of"]

VALUES = [pickle.dumps(value) for value in range(10)]
RAISED = TaskOutcome(None, None, "the user's code raised")
DELAYS = (0.0, 0.001, 0.01, 0.1, 0.4, 2.0)
"""Seconds that a message, a report or a step of a process may take."""
GO_TIMEOUT_S = 30.0
HELLO_AGAIN_S = 2.0


class Violation(AssertionError):
    """Raised when the core breaks a promise."""


class ManagerKilled(BaseException):
    """Raised where the manager dies."""


class World:
    """What goes on around managers, and outlives each of them."""

    def __init__(self, seed: int) -> None:
        self.random = random.Random(seed)
        self.now = 1000.0
        self.counts: Counter[str] = Counter()
        self.inbox: deque[Message] = deque()
        """What the server of the present manager has received."""
        self.reports: deque[Any] = deque()
        self.journal = Journal(self)
        self.processes: dict[str, Process] = {}
        """By attempt; without those that have ended and been reported."""
        self.trees: dict[str, Process] = {}
        """Ended processes whose descendants run."""
        self.handles: set[Handle] = set()
        self.outcome_files: dict[str, TaskOutcome] = {}
        self.end_files: dict[str, Exited] = {}
        self.generation = 0
        """Number of the present manager."""
        self.closing = False
        self.inodes = self.chance(0.8)
        """Whether the kernel names processes by inodes; before Linux 6.9 it does not."""
        self.kill_chance = 0.0
        self.runs: Counter[str] = Counter()
        """How often user code began, by task."""
        self.finished: dict[str, State] = {}
        self.promised: set[str] = set()
        """Attempts whose result was acknowledged by the server, and came before their expiry."""
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._serial = itertools.count()
        self._pids = itertools.count(100)

    def clock(self) -> float:
        return self.now

    def chance(self, probability: float) -> bool:
        return self.random.random() < probability

    def soon(self) -> float:
        return self.random.choice(DELAYS) * self.random.random()

    def after(self, seconds: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (self.now + seconds, next(self._serial), action))

    def next_at(self, most: float) -> float:
        return min(most, self._agenda[0][0]) if self._agenda else most

    def happen(self) -> None:
        """Do what is due."""
        while self._agenda and self._agenda[0][0] <= self.now:
            heapq.heappop(self._agenda)[2]()

    def pid(self) -> int:
        return next(self._pids)

    def send(self, message: Message) -> None:
        """Deliver a message to the manager that is there when it arrives."""
        generation = self.generation

        def arrive() -> None:
            if generation == self.generation:
                self.inbox.append(message)

        if message.kind == "hello" and message.process.told is None and self.chance(0.1):  # It is repeated.
            self.counts["lost messages"] += 1
            return
        self.after(self.soon(), arrive)
        if message.kind == "hello" and self.chance(0.1):
            self.counts["repeated messages"] += 1
            self.after(self.soon(), arrive)

    def report(self, event: Any) -> None:
        """Let the launcher of the present manager report something."""
        generation = self.generation

        def arrive() -> None:
            if generation == self.generation:
                self.reports.append(event)

        self.after(self.soon(), arrive)

    def maybe_kill(self) -> None:
        """Kill the manager here, perhaps."""
        if self.kill_chance and self.random.random() < self.kill_chance:
            self.counts["kills"] += 1
            raise ManagerKilled

    def manager_gone(self) -> None:
        """Do what the kernel does when a manager has ended: close its handles, and end what is not detached."""
        self.generation += 1
        self.inbox.clear()
        self.reports.clear()
        self.trees.clear()
        for handle in list(self.handles):
            handle.close()
        for process in list(self.processes.values()):
            if not process.detach:
                process.end(None, signal.SIGKILL)

    def check(self, holds: object, promise: str, *about: object) -> None:
        if not holds:
            raise Violation(f"{promise}: {about}")


class Message:
    """Something a process sends to its manager."""

    def __init__(
        self, kind: str, process: Process, *, stranger: bool = False, outcome: TaskOutcome | None = None
    ) -> None:
        self.kind, self.process, self.stranger, self.outcome = kind, process, stranger, outcome
        self.attempt = process.attempt
        self.id = f"{'stranger' if stranger else 'client'}-{process.pid}"
        """Session id of the sender; a peer that replays an overheard hello has another one."""


class Process:
    """A process of one attempt; for a command behind a wrapper, the one that proves itself."""

    def __init__(self, world: World, attempt: str, task: str, *, detach: bool, command: bool, wrapped: bool) -> None:
        self.world, self.attempt, self.task, self.detach, self.command = world, attempt, task, detach, command
        self.pid = world.pid()
        self.wrapper = Wrapper(world, self) if wrapped else None
        self.alive = True
        self.asked_at: float | None = None
        """Time of the last SIGTERM."""
        self.told: str | None = None
        """The answer to its hello."""
        self.outcome: TaskOutcome | None = None
        self.acknowledged = False
        self.exit: tuple[int | None, int | None] | None = None
        pick = world.random.random()
        self.stubborn = world.chance(0.1)
        self.life = "silent" if pick < 0.03 else "stillborn" if pick < 0.06 else "returns" if pick < 0.7 else "dies"
        if self.life == "dies":
            self.life = world.random.choice(["dies", "raises", "hangs", "lingers", "returns late"])
        world.processes[attempt] = self
        if self.life == "stillborn":
            world.after(world.soon(), lambda: self.end(1, None))
        elif self.life != "silent":
            world.after(world.soon(), self.hello)
        world.after(GO_TIMEOUT_S, self.give_up)

    def hello(self) -> None:
        if not self.alive or self.told is not None:
            return
        self.world.send(Message("hello", self))
        if self.world.chance(0.05):
            self.world.counts["impostors"] += 1
            self.world.send(Message("hello", self, stranger=True))
        self.world.after(HELLO_AGAIN_S, self.hello)

    def give_up(self) -> None:
        if self.alive and self.told is None and (self.detach or self.life != "silent"):
            self.end(75, None)

    def hear(self, word: str, message: Message) -> None:
        """Obey the manager's answer."""
        world = self.world
        world.check(not message.stranger or word != "go", "only the process itself is told to go", self.attempt)
        if not self.alive or message.stranger:
            return
        if word == "die":
            if self.told is None:
                self.end(75, None)
            else:
                self.terminate()
        elif word == "challenge":
            world.send(Message("answer", self))
        elif self.told is None:
            self.told = word
            self.begin()

    def begin(self) -> None:
        """The user's code begins."""
        world = self.world
        world.runs[self.task] += 1
        world.counts["runs"] += 1
        world.check(self.attempt in world.journal.proven, "the journal knows a process before it begins", self.attempt)
        world.check(self.task not in world.finished, "nothing runs for a task that has ended", self.task)
        if self.life != "hangs":
            world.after(world.soon() + world.random.choice([0.0, 0.0, 3.0]), self.finish_code)

    def finish_code(self) -> None:
        """The user's code ends."""
        if not self.alive:
            return
        if self.life == "dies":
            self.end(self.world.random.choice([1, 0]), None)
        elif self.command:
            self.end(self.world.random.choice([0, 0, 3]), None)
        else:
            value = VALUES[self.pid % len(VALUES)]
            self.outcome = RAISED if self.life == "raises" else TaskOutcome(value)
            if self.detach:
                self.world.outcome_files[self.attempt] = self.outcome
            self.world.send(Message("result", self, outcome=self.outcome))
            if self.life == "returns late":  # Killed by something else, with the result on its way.
                self.world.after(self.world.soon(), lambda: self.end(None, signal.SIGKILL))

    def acknowledge(self) -> None:
        self.acknowledged = True
        if self.alive and self.life != "lingers":
            self.end(1 if self.life == "raises" else 0, None)

    def new_manager(self) -> None:
        """The server is another one: say hello to it, and repeat what was not acknowledged."""
        if not self.alive:
            return
        if self.told == "go":
            self.world.send(Message("hello", self))
        if self.outcome is not None and not self.acknowledged:
            self.world.send(Message("result", self, outcome=self.outcome))

    def terminate(self) -> None:
        self.asked_at = self.world.now
        if not self.stubborn:
            self.world.after(self.world.soon(), lambda: self.end(None, signal.SIGTERM))

    def end(self, exit_code: int | None, number: int | None) -> None:
        if not self.alive:
            return
        self.alive, self.exit = False, (exit_code, number)
        if self.wrapper is not None:
            self.wrapper.end(exit_code, number)
            return
        self.over(exit_code, number)

    def over(self, exit_code: int | None, number: int | None) -> None:
        """What was launched has ended: report it."""
        world = self.world
        if not self.alive:
            world.processes.pop(self.attempt, None)
        ended = Exited(self.attempt, exit_code, number)
        if world.generation == self.generation:
            if self.detach or self.alive or not world.chance(0.2):
                world.report(ended)
                return
            world.counts["descendants left"] += 1
            self.ended, self.ended_at = ended, world.now
            world.trees[self.attempt] = self
            world.report(DescendantsLeft(self.attempt))
            world.after(world.random.choice([1.0, 1e4]), self.tree_ends)
            return
        if self.detach and world.chance(0.7):
            world.after(world.soon(), lambda: world.end_files.setdefault(self.attempt, ended))
        if self.adopted == world.generation:
            world.report(Exited(self.attempt, None, None))

    def tree_ends(self) -> None:
        """The descendants end."""
        if self.world.trees.pop(self.attempt, None) is not None:
            late = self.world.now >= self.ended_at + 1e4
            self.world.check(not late, "descendants are killed when their task has ended", self.attempt)
            self.world.report(self.ended)

    generation = 0
    """Of the manager that launched it."""
    adopted = -1
    """Of the manager that watches it instead."""


class Wrapper:
    """A process between the launcher and the task's process. It may be killed alone."""

    def __init__(self, world: World, child: Process) -> None:
        self.world, self.child = world, child
        self.pid = world.pid()
        self.alive = True

    def end(self, exit_code: int | None, number: int | None) -> None:
        if not self.alive:
            return
        self.alive = False
        if self.child.told is None:
            self.child.alive = False  # The zygote ends orphans; those that have proven themselves are the manager's.
        self.child.over(exit_code, number)


class Handle:
    """A pidfd, as `doorman.process.Process` has it."""

    def __init__(self, world: World, process: Process | Wrapper) -> None:
        self.world, self.process = world, process
        self.pid = self.inode = process.pid
        self.open = True
        world.handles.add(self)

    def close(self) -> None:
        self.open = False
        self.world.handles.discard(self)

    def signal(self, number: int) -> bool:
        return self._send(self.process, number)

    def signal_tree(self, *numbers: int, group: bool = True) -> bool:
        sent = [self._signal_group(number) if group else self.signal(number) for number in numbers]
        return any(sent)

    def _signal_group(self, number: int) -> bool:
        process = self.process
        sent = self._send(process, number)
        # A wrapper's child is of its group, unless it leads one of its own, as it does here now and then.
        if isinstance(process, Wrapper) and process.child.pid % 3:
            sent |= self._send(process.child, number)
        return sent

    def _send(self, process: Process | Wrapper, number: int) -> bool:
        task = process.child if isinstance(process, Wrapper) else process
        self.world.check(self.open, "signals go to what is held", number, task.attempt)
        if self.world.closing and task.detach and task.told == "go" and not self.world.journal.failing:
            left = self.world.journal.stopped.get(task.attempt) is not None
            self.world.check(left, "a detached process is left alone", task.attempt)
        if not process.alive:
            return False
        if number == signal.SIGKILL:
            process.end(None, number)
        elif number == signal.SIGTERM:
            if isinstance(process, Wrapper):
                process.end(None, number)
            else:
                process.terminate()
        return True


def identity_of(process: Process) -> Identity:
    inode = process.pid if process.world.inodes else None
    return Identity(NODE_ID, boot_id(), "pid:[1]", process.pid, inode, 1, process.attempt, pid_inside=process.pid)


class Journal:
    """The records of all managers. What was appended survives."""

    location = None

    def __init__(self, world: World) -> None:
        self._world = world
        self.records: list[records.Record] = []
        self.proven: set[str] = set()
        self.stopped: dict[str, State] = {}
        self.ended: dict[str, State] = {}
        self.outcomes: set[str] = set()
        self._attempts: dict[str, str] = {}
        self.failing = False

    def check(self) -> None:
        if self.failing:
            raise JournalError("no space is left")

    def append(self, record: records.Record) -> None:
        world = self._world
        if world.kill_chance and world.chance(world.kill_chance / 20):
            self.failing = True
            world.counts["journal failures"] += 1
        self.check()
        self.records.append(record)
        assert not isinstance(record, records.JournalOpened)
        task = record.task
        if isinstance(record, records.Started):
            world.counts["attempts"] += 1
            world.check(task not in self.ended, "no attempt after the end", task)
            self._attempts[task] = record.attempt
        elif isinstance(record, records.ProcessProven):
            self.proven.add(self._attempts[task])
        elif isinstance(record, records.Stopped):
            self.stopped[self._attempts[task]] = record.ends_as
        elif isinstance(record, records.Requeued):
            self._check_gone(self._attempts.pop(task, None))
        elif isinstance(record, records.OutcomeReceived):
            self.outcomes.add(self._attempts[task])
        elif isinstance(record, records.Ended):
            if self._attempts.get(task) in world.promised:
                counts = record.state in (State.DONE, State.FAILED)
                world.check(counts, "a result that was acknowledged counts", task, record.state)
            world.check(task not in self.ended, "a task ends once", task, record.state)
            self._check_gone(self._attempts.get(task))
            self.ended[task] = record.state

    def _check_gone(self, attempt: str | None) -> None:
        process = self._world.processes.get(attempt or "")
        at_work = process is not None and process.alive and process.told == "go"
        # Without inodes an adopted process that does not prove itself again is left alone.
        self._world.check(not (at_work and self._world.inodes), "no user code goes on behind the end", attempt)

    def entries(self) -> tuple[records.Entry, ...]:
        """Return what is known of each task that has not ended, and drop the rest, as a rotation does."""
        entries = records.folded(self.records)
        living = {task: entry for task, entry in entries.items() if entry.ended is None}
        self.records = [record for entry in living.values() for record in entry.records()]
        return tuple(living.values())
