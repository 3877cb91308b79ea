"""Launching: the manager's side of its launcher: a process is ordered for what may start, and comes, or does not."""

from __future__ import annotations

import os
import resource
import signal
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Any, Final

from doorman._scheduler.attempt import Attempt, Orders
from doorman._scheduler.handshake import HandshakeServer
from doorman._scheduler.output import Streams
from doorman._scheduler.run_queue import QueuedTask, RunQueue
from doorman.errors import LaunchRefused, TaskDetached, WorkerDied
from doorman.identity import Credential, Identity
from doorman.journal.recorder import Recorder
from doorman.launcher import Event, Exited, Launched, Launcher
from doorman.process import Process
from doorman.states import State
from doorman.task import Task
from remit._protocol.deadlines import DeadlineHeap

__all__ = ["Cancellation", "Due", "Ending", "Launching", "Running"]


OVER: Final = 1024
"""Attempts that are remembered after their end, so that a process of theirs that turns up late can be told to die."""
TIDY: Final = 1024
"""Dues, beside those of the attempts that exist, beyond which those of attempts that have ended are taken out."""


class Due(Enum):
    """What may come due for an attempt."""

    HELLO = auto()
    """It should have proven itself by now."""
    EXPIRY = auto()
    """Its task's own code has run for as long as it may."""
    LINGERED = auto()
    """Its time was over when it had told its result, and it has had the grace to end by itself."""
    KILL = auto()
    """It was told to end, and the grace is over."""
    LAST_WORDS = auto()
    """Its process has ended, and a result that was under way would be here by now."""


class Running:
    """The attempts of one manager, by id and by task.

    ``grace`` is the seconds between SIGTERM and SIGKILL; ``stopped`` is called before an attempt is told to end.
    """

    def __init__(self, *, grace: float, stopped: Callable[[Attempt, State], object]) -> None:
        self._grace: Final = grace
        self._stopped = stopped
        self._attempts: dict[str, Attempt] = {}
        self._by_task: dict[Task, Attempt] = {}
        self._by_handler: dict[str, dict[Attempt, None]] = {}
        self._over: dict[str, Credential] = {}
        self._dues: DeadlineHeap[tuple[Due, str]] = DeadlineHeap()
        self.unproven = 0
        """How many are on their way from launch to proof."""

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._attempts.values()))

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt.id in self._attempts

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the attempts."""
        return tuple(self._by_task)

    def named(self, attempt_id: object) -> Attempt | None:
        """Return the attempt of that id; None if there is none, or if that is no id at all."""
        return self._attempts.get(attempt_id) if isinstance(attempt_id, str) else None

    def over(self, attempt_id: object) -> Credential | None:
        """Return the credential of an attempt that has ended not long ago; no hello under it is believed."""
        return self._over.get(attempt_id) if isinstance(attempt_id, str) else None

    def of(self, task: Task) -> Attempt | None:
        """Return the attempt that is under way for a task."""
        return self._by_task.get(task)

    def siblings(self, task: Task) -> tuple[Attempt, ...]:
        """Return the attempts of other tasks with the same handler."""
        return tuple(attempt for attempt in self._by_handler.get(task.handler, ()) if attempt.task is not task)

    # -- the life of an attempt --------------------------------------------------------------------------------

    def add(self, attempt: Attempt) -> None:
        """Begin: its process was asked for."""
        attempt.task._set_state(State.LAUNCHING)
        self._register(attempt)
        self.unproven += 1

    def launched(self, attempt: Attempt, process: Process, patience: float) -> None:
        """Go on: a process is there, and has ``patience`` seconds to prove itself."""
        attempt.launched = process
        if attempt.stopping is not None:
            attempt.signal(signal.SIGKILL)
            return
        attempt.task._set_state(State.PROVING)
        self.expect(Due.HELLO, attempt, patience)

    def proven(self, attempt: Attempt, identity: Identity) -> None:
        """Go on: the process is the task's, and its code begins. Raises IdentityRefused if it has ended meanwhile."""
        if attempt.launched is not None and identity.here and identity.pid != attempt.launched.pid:
            attempt.own = identity.open()
        attempt.task.identity = identity
        self.unproven -= 1
        attempt.task._set_state(State.RUNNING)
        if attempt.task.expires_in is not None:
            self.expect(Due.EXPIRY, attempt, attempt.task.expires_in)

    def resume(self, attempt: Attempt, identity: Identity, began: float) -> None:
        """Go on with what a manager before this one has proven; ``began`` is when, by the monotonic clock."""
        task = attempt.task
        task.identity = identity
        task._set_state(State.RUNNING)
        task._set_started(began)
        self._register(attempt)
        if task.expires_in is not None:
            self.expect(Due.EXPIRY, attempt, began + task.expires_in - time.monotonic())

    def resume_unproven(self, attempt: Attempt, patience: float) -> None:
        """The same where the kernel cannot tell which process it is: it has ``patience`` seconds to prove itself."""
        self.add(attempt)
        attempt.task._set_state(State.PROVING)
        self.expect(Due.HELLO, attempt, patience)

    def _register(self, attempt: Attempt) -> None:
        self._attempts[attempt.id] = self._by_task[attempt.task] = attempt
        self._by_handler.setdefault(attempt.handler, {})[attempt] = None

    def remember(self, credential: Credential) -> None:
        """Believe no hello under this credential any more; a process that says one is told to die."""
        credential.revoke()
        self._over[credential.attempt] = credential
        if len(self._over) > OVER:
            del self._over[next(iter(self._over))]

    def let_go(self, attempt: Attempt) -> None:
        """Leave a detached process to itself: nothing is said to it."""
        self.forget(attempt)
        del self._over[attempt.id]

    def stop(self, attempt: Attempt, ends_as: State) -> None:
        """TERM now, KILL to the whole group after the grace; at once KILL to what has not even proven itself."""
        if attempt.stopping is not None:
            return
        self._stopped(attempt, ends_as)
        attempt.stopping = ends_as
        proven = attempt.task.state is State.RUNNING
        attempt.task._set_state(State.STOPPING)
        if proven:
            attempt.terminate()
        else:
            attempt.signal(signal.SIGKILL)
        self.expect(Due.KILL, attempt, self._grace)

    def linger(self, attempt: Attempt) -> None:
        """Let it end by itself, though its time is over: its result is here. It has the grace for that."""
        self.expect(Due.LINGERED, attempt, self._grace)

    def forget(self, attempt: Attempt) -> None:
        """End: let go of its processes; every later hello is late."""
        self.remember(attempt.credential)
        del self._attempts[attempt.id]
        del self._by_task[attempt.task]
        siblings = self._by_handler[attempt.handler]
        del siblings[attempt]
        if not siblings:
            del self._by_handler[attempt.handler]
        if attempt.task.identity is None:
            self.unproven -= 1
        attempt.close()
        if len(self._dues) > TIDY + len(Due) * len(self._attempts):
            self._dues.tidy(lambda due: due[1] in self._attempts)

    # -- time --------------------------------------------------------------------------------------------------

    def expect(self, due: Due, attempt: Attempt, seconds: float) -> None:
        """Let something come due for an attempt, unless it is over by then."""
        self._dues.expect((due, attempt.id), seconds)

    def due(self) -> Iterator[tuple[Due, Attempt]]:
        """Yield what has come due since the last call."""
        for due, attempt_id in self._dues.due():
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                yield due, attempt

    def patience(self, most: float) -> float:
        """Return the seconds until something comes due, ``most`` at the most."""
        return self._dues.patience(most)


class Cancellation:
    """The tasks of one manager that have a `cancel_when`."""

    def __init__(self) -> None:
        self._asked: dict[Task, None] = {}

    def __len__(self) -> int:
        return len(self._asked)

    def add(self, task: Task) -> None:
        """Ask a task from now on, if it has anything to ask."""
        if task.cancel_when is not None:
            self._asked[task] = None

    def forget(self, task: Task) -> None:
        """Ask it no more."""
        self._asked.pop(task, None)

    def ask(self, cancel: Callable[[Task], object], fail: Callable[[Task, BaseException], object]) -> None:
        """Give those that are not wanted any more to ``cancel``, those whose question raises to ``fail``."""
        for task in list(self._asked):
            try:
                cancelled = task.cancel_when is not None and task.cancel_when()
            except Exception as error:  # noqa: BLE001 - a question of one task's must not stop the others
                self.forget(task)
                fail(task, error)
                continue
            if cancelled:
                self.forget(task)
                cancel(task)


LAST_WORDS: Final = 0.5
"""Seconds for which the result of a process that died unexpectedly may still be under way."""


class Ending:
    """Takes what ends an attempt, from wherever it comes, to its task, to the journal and to those who wait.

    ``hear`` hears what the processes have said by now; ``refused`` counts those that never proved themselves.
    """

    def __init__(
        self,
        running: Running,
        admission: RunQueue,
        recorder: Recorder,
        streams: Streams,
        cancellation: Cancellation,
        *,
        hear: Callable[[], object],
        refused: Counter[str],
    ) -> None:
        self._running = running
        self._admission = admission
        self._recorder = recorder
        self._streams = streams
        self._cancellation = cancellation
        self._hear = hear
        self._refused = refused
        self.for_good = False
        """Whether nothing is tried again: its manager closes."""

    # -- what ends an attempt ----------------------------------------------------------------------------------

    def cancel(self, task: Task) -> bool:
        """End a task that nobody wants any more, waiting or running; False if it has ended."""
        return self._cut_short(task, State.CANCELLED)

    def fail(self, task: Task, error: BaseException) -> None:
        """End a task because of what its policy raised, or because it cannot be started at all."""
        self._cut_short(task, State.FAILED, error)

    def cancel_siblings(self, task: Task) -> None:
        """Stop the running tasks with the same handler."""
        for sibling in self._running.siblings(task):
            self._stop_for_good(sibling, State.CANCELLED)

    def settle(self) -> None:
        """Let go on what came after tasks that are done, and end what came after others."""
        for task, error in self._admission.settle():
            self._end(task, State.CANCELLED, error=error)

    def keep_time(self) -> None:
        """Do what has come due."""
        for due, attempt in self._running.due():
            if due is Due.KILL:
                attempt.signal(signal.SIGKILL)
            elif due is Due.LAST_WORDS:
                self.conclude(attempt)
            elif due is Due.EXPIRY and attempt.outcome is None:
                self._running.stop(attempt, State.EXPIRED)
            elif due is Due.EXPIRY:
                self._running.linger(attempt)
            elif due is Due.LINGERED:
                self._running.stop(attempt, State.FAILED)  # No matter which: it ends as its result says.
            elif due is Due.HELLO and attempt.task.identity is None:
                self._refused["no hello in time"] += 1
                if attempt.salt:  # Nobody knows that it is the task's: it is left alone.
                    self.conclude(attempt)
                else:
                    self._running.stop(attempt, State.FAILED)

    def not_launched(self, attempt: Attempt, why: str) -> None:
        """No process could be made."""
        stopped = attempt.stopping not in (None, State.FAILED)
        error = None if stopped else attempt.error or WorkerDied(None, None, None, why)
        self.over(attempt, attempt.stopping or State.FAILED, error=error)

    def exited(self, attempt: Attempt, event: Exited) -> None:
        """Its process has ended. Its result may still be under way: then the end waits for it a little."""
        attempt.exited = event
        task = attempt.task
        task.exit_code, task.signal, task.max_rss = event.exit_code, event.signal, event.max_rss
        if not task.detach:
            attempt.end_own()  # A wrapper's end is the attempt's, and nothing of it goes on.
        unexpected = attempt.outcome is None and attempt.stopping is None and not task.argv
        if (unexpected and task.state is State.RUNNING) or self._recorder.awaits_end(attempt):
            self._running.expect(Due.LAST_WORDS, attempt, LAST_WORDS)
        else:
            self._hear()
            self.conclude(attempt)

    def let_go(self) -> None:
        """Leave detached processes that are at work to themselves, and to the journal's next manager."""
        for attempt in self._running:
            task = attempt.task
            at_work = task.identity is not None or attempt.salt
            if task.detach and at_work and attempt.stopping is None:
                self._running.let_go(attempt)
                self._admission.ended(attempt)
                left = TaskDetached(f"{task!r} runs on without this manager; open its journal to take it over")
                task._finish(State.LOST, error=left)

    def give_up(self) -> None:
        """End what has not ended in all the time that there was."""
        for attempt in self._running:
            self.over(attempt, attempt.stopping or State.LOST, error=attempt.error)

    # -- the end -----------------------------------------------------------------------------------------------

    def conclude(self, attempt: Attempt) -> None:
        """End an attempt whose process has ended, as it says itself."""
        if attempt in self._running:
            self._recorder.recall(attempt)
            self.over(attempt, *attempt.verdict())

    def over(self, attempt: Attempt, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """End an attempt, and its task with it unless it is to be tried again."""
        try:
            self._streams.finish_attempt(attempt.id)
        finally:  # Whoever listens may be interrupted, as by Ctrl-C; the attempt is over all the same.
            self._decide(attempt, state, value, error)

    def forget(self, attempt: Attempt) -> None:
        """Count an attempt no more: its process is gone, or never came."""
        self._running.forget(attempt)
        self._admission.ended(attempt)

    def _decide(self, attempt: Attempt, state: State, value: Any, error: BaseException | None) -> None:
        task = attempt.task
        self.forget(attempt)
        # What was cancelled under the manager before this one is not wanted either, whatever its process still told.
        wanted = not (attempt.final or attempt.stopping is State.CANCELLED or self.for_good)
        state, value, error, pause = task._next_attempt(state, value, error, wanted=wanted)
        if pause is None:
            self._end(task, state, value, error)
        else:
            self._recorder.again(task)
            self._admission.rest(task, attempt.call, pause)
        self._recorder.forget(attempt)

    def _cut_short(self, task: Task, state: State, error: BaseException | None = None) -> bool:
        """Stop a task that runs, drop one that waits; False if it has ended."""
        attempt = self._running.of(task)
        if attempt is not None:
            attempt.error = error or attempt.error
            self._stop_for_good(attempt, state)
        elif self._admission.drop(task):
            self._end(task, state, error=error)
        else:
            return False
        return True

    def _stop_for_good(self, attempt: Attempt, ends_as: State) -> None:
        attempt.final = True  # Also if it is being stopped already, for another reason.
        self._running.stop(attempt, ends_as)

    def _end(self, task: Task, state: State, value: Any = None, error: BaseException | None = None) -> None:
        self._cancellation.forget(task)
        self._recorder.ended(task, state, value, error)
        task._finish(state, value, error)


AT_ONCE: Final = 64
"""Processes that may be on their way from launch to proof: more only make each other wait."""
DESCRIPTORS: Final = 5
"""Descriptors that a process may take up here until it has proven itself: two pidfds, two pipes and its connection."""
SPARE: Final = 16
"""Descriptors that are left to whatever else opens one."""


class Launching:
    """Orders the processes of those tasks that are admitted, and hears what becomes of them.

    ``patience`` is how many seconds a process has to prove itself.
    """

    def __init__(
        self,
        launcher: Launcher,
        orders: Orders,
        running: Running,
        admission: RunQueue,
        recorder: Recorder,
        streams: Streams,
        reception: HandshakeServer,
        ending: Ending,
        patience: float,
    ) -> None:
        self._launcher = launcher
        self._orders = orders
        self._running = running
        self._admission = admission
        self._recorder = recorder
        self._streams = streams
        self._reception = reception
        self._ending = ending
        self._patience = patience
        self._events: deque[Event] = deque()

    @property
    def full(self) -> bool:
        """Whether so many processes are on their way that no other is asked for."""
        return self._running.unproven >= AT_ONCE

    @property
    def pending(self) -> bool:
        """Whether there is word of the launcher's that was heard and not obeyed."""
        return bool(self._events)

    # -- from a task that waits to an order --------------------------------------------------------------------

    def admit(self) -> None:
        """Start what may start."""
        if len(self._admission) and not self.full:
            self._admission.admit(self._running, self._start, self._ending.fail)

    def _start(self, entry: QueuedTask) -> bool:
        """Ask for a process; False if no other is to be asked for just now."""
        if not _descriptors_left((self._running.unproven + 1) * DESCRIPTORS + SPARE):
            self._admission.refused("few descriptors are left to this process: see `ulimit -n`")
            return False
        task = entry.task
        attempt = Attempt(task, entry.call, task.attempt + 1, entry.turn)
        self._recorder.started(attempt)
        try:
            self._order(attempt)
        except LaunchRefused as error:
            self._recorder.again(task)
            self._admission.refused(str(error))
            return False
        except (OSError, ValueError) as error:  # It cannot be written down, as a wrapper whose words are no text.
            self._ending.fail(task, error)
            return True
        self._admission.drop(task)
        self._admission.started(attempt)
        task.attempt, task.progress = attempt.number, None
        task.output = self._streams.files(task, attempt.id)
        self._running.add(attempt)
        if task.stops_siblings:
            self._ending.cancel_siblings(task)
        return not self.full

    def _order(self, attempt: Attempt) -> None:
        """Order a process. Raises LaunchRefused; OSError for a file of its output, ValueError for the order itself."""
        outputs = self._streams.open(attempt.task, attempt.id)
        try:
            self._launcher.launch(self._orders.written(attempt, outputs, record=self._recorder.place_of(attempt)))
        except BaseException:
            self._streams.finish_attempt(attempt.id)
            raise
        finally:
            outputs.close()

    # -- from an order to a process, and to its end ------------------------------------------------------------

    def hear(self) -> None:
        """Obey what the launcher has to say."""
        self._events.extend(self._launcher.poll())
        while self._events:  # Kept: who is interrupted in one, as by Ctrl-C, goes on with the next.
            event = self._events.popleft()
            attempt = self._running.named(event.attempt)
            if attempt is None:
                if isinstance(event, Launched):
                    event.process.close()
            elif isinstance(event, Launched):
                self._launched(attempt, event)
            elif isinstance(event, Exited):
                self._ending.exited(attempt, event)
            elif event.back_pressure and attempt.stopping is None:
                self._put_back(attempt, event.why)
            else:
                self._ending.not_launched(attempt, event.why)

    def _launched(self, attempt: Attempt, event: Launched) -> None:
        attempt.reach = event.reach
        self._recorder.launched(attempt, event.process)
        self._running.launched(attempt, event.process, self._patience)
        self._reception.admit_early(attempt)

    def _put_back(self, attempt: Attempt, why: str) -> None:
        """Let its task wait where it stood, as if no process had been asked for: the system has none to give."""
        task = attempt.task
        self._ending.forget(attempt)
        self._streams.finish_attempt(attempt.id)
        task._set_state(State.WAITING)
        task.attempt -= 1
        self._recorder.again(task)
        self._admission.put_back(attempt, f"no process can be started now: {why}")


def _descriptors_left(count: int) -> bool:
    """Tell whether so many more can be opened, as far as the lowest free one tells: without one no proof is heard."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(lowest)
    return most == resource.RLIM_INFINITY or lowest + count <= most
