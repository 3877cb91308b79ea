"""A `ProcessManager` whose launcher, server, files and clock are a simulated world's."""

from __future__ import annotations

from collections import Counter
from collections.abc import Container, Iterable, Iterator
from typing import Any

from doorman import ProcessManager, Rule, Task
from doorman._scheduler import lifecycle
from doorman._scheduler.attempt import Attempt, Timeouts
from doorman._scheduler.base_manager import BaseManager
from doorman._scheduler.lifecycle import HelloReceived, ManagerClosed, Phase, ProofRefused, Proven, ResultReceived
from doorman._scheduler.output import Outputs
from doorman._scheduler.run_queue import RunQueue
from doorman._scheduler.supervisor import Supervisor
from doorman._worker.outcome import TaskOutcome
from doorman.errors import LaunchRefused
from doorman.identity import Credential, Identity
from doorman.journal.journal import Journal
from doorman.journal.recorder import Recorder
from doorman.journal.records import Entry
from doorman.journal.recovery import Recovery
from doorman.launcher import Exited, Launched, LaunchFailed, Order
from doorman.load import Load
from tasks.world import Handle, Message, Process, World, identity_of

__all__ = ["SLOTS", "Manager"]

SLOTS = 8
GRACE_S = 3.0
HELLO_TIMEOUT_S = 30.0


class Manager(ProcessManager):
    """The manager of one generation of a world."""

    def __init__(self, world: World) -> None:
        BaseManager.__init__(self)
        self.world = world
        self._closed = self._stopped = self._released = self._ticking = False
        self._clock = world.clock
        self._run_queue: _RunQueue = _RunQueue([Rule(processes=SLOTS)], clock=world.clock)
        self.rules = self._run_queue.rules
        self._recorder = recorder = _Recorder(world)
        self._launcher: Any = _Launcher(world)
        self._output: Any = _Output()
        handshake: Any = _Handshake(world)
        self._supervisor: _Supervisor = _Supervisor(
            self._launcher,
            self._run_queue,
            recorder,
            self._output,
            handshake,
            timeouts=Timeouts(GRACE_S, HELLO_TIMEOUT_S),
            payload=(b"", b""),
            clock=world.clock,
        )
        self._supervisor.use_world(world)
        self._requests = self._supervisor.requests
        self.recovered = _Recovery(recorder, self._run_queue, self._supervisor, self._launcher).run(
            self, world.journal.entries()
        )
        for process in list(world.processes.values()):
            process.new_manager()

    def next_timeout(self) -> float:
        """Return the seconds for which `wait` would sleep."""
        return self._supervisor.next_timeout(
            self._run_queue.next_timeout(60.0, full=self._supervisor.room <= 0),
        )

    def leave(self) -> None:
        """Begin to close: what is detached goes on."""
        self._closed = True
        self.world.closing = True
        try:
            self._begin_shutdown()
        finally:
            self.world.closing = False

    def give_up(self) -> None:
        """Close: the launcher has killed what was left."""
        self._supervisor.handle_all(ManagerClosed())

    def check_empty(self) -> None:
        """Check that nothing is left of what has ended."""
        supervisor, world = self._supervisor, self.world
        load = self._run_queue.load
        world.check(not len(supervisor) and not supervisor.tasks, "no attempt is left", supervisor.tasks)
        world.check(not load.everyone.processes and not load.handlers, "no slot is left", load)
        world.check(supervisor.indexes_are_empty, "no index is left")
        world.check(not world.handles, "no handle is left", [handle.pid for handle in world.handles])


class _Supervisor(Supervisor):
    """The supervisor of a world, which may kill the manager between any two actions."""

    def use_world(self, world: World) -> None:
        self._world = world

    def perform(self, attempt: Attempt, action: lifecycle.Action, *, again: bool) -> None:
        self._world.maybe_kill()
        self._world.counts["actions"] += 1
        super().perform(attempt, action, again=again)

    @property
    def indexes_are_empty(self) -> bool:
        return not self._unproven and not self._by_handler


class _RunQueue(RunQueue):
    """The run queue, whose slots can be counted."""

    @property
    def load(self) -> Load:
        return self._occupancy.load


class _Output:
    """Output that goes nowhere."""

    pending = False

    def open(self, _task: Task, _attempt: str) -> Outputs:
        return Outputs()

    def read(self) -> None:
        pass

    def finish_attempt(self, _attempt: str) -> None:
        pass


class _Launcher:
    """Makes simulated processes; not always, and not at once."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._generation = world.generation

    def launch(self, order: Order) -> None:
        world = self._world
        pick = world.random.random()
        if pick < 0.03:
            world.counts["requests declined"] += 1
            raise LaunchRefused("the zygote takes no more now")
        if pick < 0.04:
            raise ValueError("the request cannot be written")
        if pick < 0.06:
            world.report(LaunchFailed(order.attempt, "no process", back_pressure=pick < 0.05))
            return
        generation = world.generation

        def launched() -> None:
            if generation != world.generation:
                return  # The zygote has ended with its manager.
            task = order.attempt.split(".", maxsplit=1)[0]
            command, wrapped = bool(order.command), world.chance(0.1)
            process = Process(world, order.attempt, task, detach=order.detach, command=command, wrapped=wrapped)
            process.generation = generation
            world.reports.append(Launched(order.attempt, Handle(world, process.wrapper or process)))  # type: ignore[arg-type]
            if process.wrapper is not None and world.chance(0.1):
                wrapper = process.wrapper
                world.after(world.soon(), lambda: wrapper.end(None, 9))

        world.after(world.soon(), launched)

    def kill(self, attempt: str) -> None:
        process = self._world.trees.get(attempt)
        if process is not None:
            asked = process.asked_at
            early = asked is not None and self._world.now < asked + GRACE_S
            self._world.check(not early, "descendants have the rest of the grace period", attempt)
            process.tree_ends()

    def poll(self) -> list[Any]:
        reports = list(self._world.reports)
        self._world.reports.clear()
        return reports

    def watch(self, attempt: str, _process: Any) -> None:
        self._world.processes[attempt].adopted = self._world.generation


class _Handshake:
    """Verifies simulated hellos."""

    def __init__(self, world: World) -> None:
        self.refused: Counter[str] = Counter()
        self._world = world

    def open(self, supervisor: Supervisor) -> None:
        self._supervisor = supervisor

    def receive(self) -> None:
        inbox = self._world.inbox
        while inbox:
            message = inbox.popleft()
            attempt = self._supervisor.attempt(message.attempt)
            if message.kind == "hello":
                self._hello(attempt, message)
            elif message.kind == "answer":
                self._answer(attempt, message)
            else:
                self._result(attempt, message)

    def _hello(self, attempt: Attempt | None, message: Message) -> None:
        if attempt is not None:
            self._supervisor.handle(attempt, HelloReceived(message, message))
        elif (credential := self._supervisor.ended_credential(message.attempt)) is not None:
            self.reply(credential, "die", message)

    def _answer(self, attempt: Attempt | None, message: Message) -> None:
        if attempt is None or not attempt.adopted or not message.process.alive:
            return
        held = Handle(self._world, message.process) if attempt.launched is None else None
        identity = identity_of(message.process)
        self._supervisor.handle(attempt, Proven(identity, message, launched=held))  # type: ignore[arg-type]

    def _result(self, attempt: Attempt | None, message: Message) -> None:
        """Hand a result over. It is acknowledged unless the manager dies first."""
        world, outcome = self._world, message.outcome
        assert outcome is not None
        if attempt is not None and attempt.identity is not None:
            counts = attempt.stopping is not lifecycle.State.EXPIRED
            self._supervisor.handle(attempt, ResultReceived(outcome))
            known, failing = message.attempt in world.journal.outcomes, world.journal.failing
            world.check(known or failing, "the journal has a result before it is acknowledged", message.attempt)
            if counts and known:
                world.promised.add(message.attempt)
        message.process.acknowledge()

    def verify(self, attempt: Attempt, hello: Message, sender: Message) -> Proven | ProofRefused:
        process, launched = hello.process, attempt.launched
        if not process.alive:
            return ProofRefused("the process is not there")
        if hello.stranger and attempt.sender is None:
            return ProofRefused("the kernel says that another process sent it")
        held: Any = launched
        behind = process.wrapper is not None and process.wrapper is held.process
        if held.process is not process and not (behind and held.process.alive):
            return ProofRefused("not descended from what was launched")
        own: Any = Handle(self._world, process) if behind and attempt.phase is Phase.PROVING else None
        return Proven(identity_of(process), sender, own=own)  # type: ignore[arg-type]

    def challenge(self, _attempt: Attempt, sender: Message) -> None:
        self._tell("challenge", sender)

    def reply(self, _credential: Credential, word: str, sender: Message) -> None:
        self._tell(word, sender)

    def _tell(self, word: str, message: Message) -> None:
        world = self._world
        if message.process.told is None and world.chance(0.1):
            world.counts["lost messages"] += 1
            return
        world.after(world.soon(), lambda: message.process.hear(word, message))


class _Recorder(Recorder):
    """The recorder, with a journal in memory and files that are none."""

    def __init__(self, world: World) -> None:
        journal: Any = world.journal
        super().__init__(None)
        self.journal: Journal | None = journal
        self.world = world

    def files_of(self, attempt: Attempt) -> str | None:
        return attempt.id if attempt.task.detach else None

    def read_files(self, attempt: Attempt) -> tuple[TaskOutcome | None, Exited | None]:
        return self.world.outcome_files.get(attempt.id), self.world.end_files.get(attempt.id)

    def remove_files(self, attempt: Attempt) -> None:
        self.world.outcome_files.pop(attempt.id, None)
        self.world.end_files.pop(attempt.id, None)

    def sweep(self, kept: Container[str]) -> None:
        pass


class _Recovery(Recovery):
    """Recovery that looks for processes in a simulated world."""

    def _find(self, identity: Identity) -> Any:
        world: World = self._recorder.world  # type: ignore[attr-defined]
        process = world.processes.get(identity.attempt)
        return None if process is None or not process.alive else Handle(world, process)

    def _find_wrapper(self, _entry: Entry, identity: Identity) -> Any:
        world: World = self._recorder.world  # type: ignore[attr-defined]
        wrapper = world.processes[identity.attempt].wrapper
        return None if wrapper is None or not wrapper.alive else Handle(world, wrapper)

    def _end_leftovers(self, entries: Iterable[Entry] | Iterator[Entry]) -> None:
        """What is not detached has ended with its manager; a detached process that had not proven itself has not."""
        world: World = self._recorder.world  # type: ignore[attr-defined]
        for entry in entries:
            assert entry.started is not None
            process = world.processes.get(entry.started.attempt)
            if process is not None and entry.launched is not None:
                process.end(None, 9)
