"""Manager: what is wanted and what exists; each tick hears, ends what is over, and admits what may start."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import os
import pickle
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final

import msgspec

from doorman.attempt import Attempt
from doorman.errors import IdentityRefused, LaunchRefused, ResultTimeout, WorkerDied
from doorman.identity import verify
from doorman.launcher import Exited, Launched, Launcher, LaunchFailed, Order
from doorman.launcher.zygote import ZygoteLauncher
from doorman.load import SAMPLE, Load, Meter
from doorman.logs import Logs
from doorman.result import Outcome
from doorman.rules import Rule, Rules
from doorman.states import State
from doorman.task import Owner, Task
from doorman.worker import Work
from remit import Event, Location, Server
from remit.config import private_location, resolve
from remit.plugins import find_transport

if TYPE_CHECKING:
    from types import TracebackType

__all__ = ["ProcessManager"]

GRACE: Final = 3.0
"""Seconds between SIGTERM and SIGKILL."""
HELLO_TIMEOUT: Final = 30.0
"""Seconds within which a process must have proven that it is its task's."""
LAST_WORDS: Final = 0.5
"""Seconds for which the result of a process that died unexpectedly may still be under way."""
AT_ONCE: Final = 64
"""Processes that may be on their way from launch to proof: more only make each other wait."""
BURIAL: Final = 5.0
"""Seconds that leaving a manager waits beyond `GRACE` for what it killed."""
LONG: Final = 60.0
"""Seconds that `run` waits at a time at the most."""


class ProcessManager(Owner):
    """Runs tasks in processes of their own, each proven to be its task's before the task's code begins.

    ``location`` is where the processes speak to the manager: a Remit location that crosses processes; None for a
    private one on the configured transport. Nothing happens but in `tick`, `run` and `Task.result`, in the caller's
    thread.

    launcher -- starts the processes; default: a warm zygote that forks them
    rules -- may a task start now; without rules all start at once
    preload -- modules that the zygote imports once for all tasks
    log_path -- a folder with a file for each task's output and errors; None: the manager's own
    grace -- seconds between SIGTERM and SIGKILL
    hello_timeout -- seconds within which a process must have proven itself

    Leaving the manager's block stops what still runs; `run` is how one waits. Raises LocationError, PluginError.
    """

    def __init__(
        self,
        location: str | Location | None = None,
        *,
        launcher: Launcher | None = None,
        rules: Iterable[Rule] = (),
        preload: Sequence[str] = (),
        log_path: str | os.PathLike[str] | None = None,
        grace: float = GRACE,
        hello_timeout: float = HELLO_TIMEOUT,
    ) -> None:
        where = private_location("doorman") if location is None else resolve(location)
        if not find_transport(where.scheme).capabilities.crosses_processes:
            raise ValueError(f"{where} does not reach other processes; use unix:, or leave the location out")
        self.rules = Rules(rules)
        self.refused: Counter[str] = Counter()
        """Hellos and results that were not believed, by reason."""
        self._logs = Logs(log_path)
        self._grace = grace
        self._hello_timeout = hello_timeout
        self._waiting: dict[Task, bytes] = {}
        self._attempts: dict[str, Attempt] = {}
        self._by_task: dict[Task, Attempt] = {}
        self._unproven = 0
        self._watched: dict[Task, None] = {}
        self._deadlines: list[tuple[float, int, str, str]] = []
        self._serial = itertools.count()
        self._meter = Meter()
        self._load = Load()
        self._held_back: dict[Task, str] = {}
        self._closed = False
        self._thread = threading.get_ident()
        # The zygote first: it must be exec'd before a transport starts threads here.
        self._launcher = launcher or _zygote(where, preload)
        try:
            self.server = Server(where)
        except BaseException:
            self._launcher.close(0.0)
            raise
        self._pickled_location = pickle.dumps(self.server.location)
        self.server.add_listener("doorman.hello", self._greeted, pass_event=True)
        self.server.add_listener("doorman.result", self._reported)

    # -- for those who want ------------------------------------------------------------------------------------

    def add_task(self, task: Task) -> Task:
        """Want a task; it starts in a later tick. Raises TaskNotPicklable, TaskAlreadyAdded."""
        if self._closed:
            raise ValueError("this manager is closed")
        self._waiting[task] = task.adopt(self)
        if task.cancel_when is not None:
            self._watched[task] = None
        return task

    def add_rule(self, rule: Rule) -> None:
        """Obey one more rule from now on."""
        self.rules.add(rule)

    def remove_rule(self, rule: Rule) -> bool:
        """Obey it no more; False if it was not there."""
        return self.rules.remove(rule)

    @property
    def waiting(self) -> tuple[Task, ...]:
        """The tasks that have no process yet, in the order in which they were added."""
        return tuple(self._waiting)

    @property
    def running(self) -> tuple[Task, ...]:
        """The tasks that have a process, or are about to."""
        return tuple(self._by_task)

    @property
    def busy(self) -> bool:
        """Whether anything waits or runs."""
        return bool(self._waiting or self._attempts)

    def why(self, task: Task) -> str | None:
        """Return what held a waiting task back in the last tick; None if nothing did."""
        return self._held_back.get(task)

    def cancel(self, task: Task) -> bool:
        """Drop a waiting task or stop a running one; False, and nothing is signalled, if it has ended."""
        if self._waiting.pop(task, None) is not None:
            self._end(task, State.CANCELLED)
            return True
        attempt = self._by_task.get(task)
        if attempt is None:
            return False
        self._stop(attempt, State.CANCELLED)
        return True

    def stop(self) -> None:
        """Cancel everything that waits or runs; `tick` until it has ended."""
        for task in (*self._waiting, *self._by_task):
            self.cancel(task)

    # -- making progress ---------------------------------------------------------------------------------------

    def tick(self) -> bool:
        """Do what can be done now, without waiting; True while anything waits or runs."""
        self._hear_launcher()
        self.server.tick()
        self._keep_time()
        self._ask_for_cancellation()
        self._admit()
        return self.busy

    def wait(self, timeout: float) -> None:
        """Return after ``timeout`` seconds, or earlier if `tick` has something to do."""
        now = time.monotonic()
        if self._deadlines:
            timeout = min(timeout, self._deadlines[0][0] - now)
        if self._waiting and (self.rules.by_load or self._watched or not self._attempts):
            timeout = min(timeout, SAMPLE)
        self.server.wait(max(0.0, timeout), self._launcher)

    def run(self, timeout: float | None = None) -> None:
        """Tick until nothing waits or runs, or ``timeout`` seconds have passed. Sleeps while nothing happens."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while self.tick():
            left = LONG if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return
            self.wait(min(left, LONG))

    def run_until(self, task: Task, timeout: float | None) -> None:
        """Make progress until ``task`` has ended. Raises ResultTimeout; RuntimeError in another thread."""
        if threading.get_ident() != self._thread:
            raise RuntimeError("only the thread that owns the manager can wait for a task; others may ask task.done()")
        deadline = None if timeout is None else time.monotonic() + timeout
        while not task.done():
            left = LONG if deadline is None else deadline - time.monotonic()
            if left <= 0:
                raise ResultTimeout(f"{task!r} has not ended within {timeout} s")
            self.tick()
            if not task.done():
                self.wait(min(left, LONG))

    def close(self) -> None:
        """Stop what runs (TERM, grace, KILL), drop what waits, and end. May be called twice."""
        if self._closed:
            return
        self._closed = True
        try:
            self.stop()
            self.run(self._grace + BURIAL)
        finally:
            self._launcher.close(BURIAL)
            self.server.close()
            for attempt in self._attempts.values():
                attempt.close()

    def __enter__(self) -> ProcessManager:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- hearing -----------------------------------------------------------------------------------------------

    def _hear_launcher(self) -> None:
        for event in self._launcher.poll():
            attempt = self._attempts.get(event.attempt)
            if attempt is None:
                if isinstance(event, Launched):
                    event.process.close()
            elif isinstance(event, Launched):
                self._launched(attempt, event)
            elif isinstance(event, Exited):
                self._exited(attempt, event)
            else:
                self._launch_failed(attempt, event)

    def _launched(self, attempt: Attempt, event: Launched) -> None:
        attempt.launched = event.process
        if attempt.stopping is not None:
            attempt.signal(signal.SIGKILL)
            return
        attempt.task.enter(State.PROVING)
        if attempt.hello is not None:
            self._prove(attempt, *attempt.hello)

    def _launch_failed(self, attempt: Attempt, event: LaunchFailed) -> None:
        if event.back_pressure and attempt.stopping is None:
            self._forget(attempt)
            attempt.task.enter(State.WAITING)
            self._waiting = {attempt.task: attempt.call, **self._waiting}
            attempt.task.attempt -= 1
            return
        self._over(attempt, State.FAILED, error=WorkerDied(None, None, None, event.why))

    def _exited(self, attempt: Attempt, event: Exited) -> None:
        attempt.exited = event
        task = attempt.task
        task.exit_code, task.signal, task.max_rss = event.exit_code, event.signal, event.max_rss
        unexpected = attempt.outcome is None and attempt.stopping is None and event.exit_code != 0
        if unexpected and not task.argv and task.state is State.RUNNING:
            self._at(time.monotonic() + LAST_WORDS, "last words", attempt)
        else:
            self.server.tick()
            self._conclude(attempt)

    def _greeted(self, event: Event) -> None:
        """Listener: a process says that it is an attempt's."""
        hello = event.args[0] if event.args else None
        attempt = self._attempts.get(hello.get("attempt", "")) if isinstance(hello, dict) else None
        if attempt is None:
            self.refused["unknown attempt"] += 1
        elif attempt.launched is None:
            attempt.hello = (hello, event.sender)
        else:
            self._prove(attempt, hello, event.sender)

    def _prove(self, attempt: Attempt, hello: dict[str, Any], sender: Any) -> None:
        """Believe a hello and let the task begin, or not: then nothing changes for the attempt."""
        task, credential = attempt.task, attempt.credential
        try:
            identity = verify(hello, credential, attempt.launched, peer_credentials=sender.credentials)
        except IdentityRefused as error:
            self.refused[error.reason.value] += 1
            return
        if attempt.stopping is not None:
            self._answer(sender, credential, "die")
            return
        if task.state is State.PROVING:
            task.identity = identity
            if attempt.launched is not None and identity.pid != attempt.launched.pid:
                attempt.own = identity.open()
            self._unproven -= 1
            task.enter(State.RUNNING)
            if task.expires_in is not None:
                self._at(time.monotonic() + task.expires_in, "expiry", attempt)
        self._answer(sender, credential, "go")

    def _answer(self, sender: Any, credential: Any, word: str) -> None:
        sender.emit(f"doorman.{word}", credential.attempt, credential.sign(word.encode()))

    def _reported(self, attempt_id: str, number: int, parts: int, part: bytes, signature: bytes) -> None:
        """Listener: a process reports a part of its result."""
        attempt = self._attempts.get(attempt_id)
        if attempt is None:
            self.refused["result of an unknown attempt"] += 1
            return
        try:
            whole = attempt.parts.add(number, parts, part, signature)
            if whole is not None:
                attempt.outcome = Outcome.decode(whole)
        except (ValueError, TypeError, msgspec.MsgspecError):
            self.refused["result not signed by the attempt's process"] += 1
            return
        if attempt.outcome is not None and attempt.exited is not None:
            self._conclude(attempt)

    # -- time --------------------------------------------------------------------------------------------------

    def _at(self, moment: float, what: str, attempt: Attempt) -> None:
        heapq.heappush(self._deadlines, (moment, next(self._serial), what, attempt.id))

    def _keep_time(self) -> None:
        while self._deadlines and self._deadlines[0][0] <= time.monotonic():
            _, _, what, attempt_id = heapq.heappop(self._deadlines)
            attempt = self._attempts.get(attempt_id)
            if attempt is None:
                continue
            if what == "kill":
                attempt.signal(signal.SIGKILL)
            elif what == "last words":
                self._conclude(attempt)
            elif what == "expiry" and attempt.outcome is None:
                self._stop(attempt, State.EXPIRED)
            elif what == "hello" and attempt.task.identity is None:
                self.refused["no hello in time"] += 1
                self._stop(attempt, State.FAILED)

    def _ask_for_cancellation(self) -> None:
        for task in list(self._watched):
            if task.cancel_when is not None and task.cancel_when():
                del self._watched[task]
                self.cancel(task)

    # -- ending ------------------------------------------------------------------------------------------------

    def _stop(self, attempt: Attempt, ends_as: State) -> None:
        """TERM to the whole group now, KILL after the grace; at once KILL to what has not even proven itself."""
        if attempt.stopping is not None:
            return
        attempt.stopping = ends_as
        proven = attempt.task.state is State.RUNNING
        attempt.task.enter(State.STOPPING)
        attempt.signal(signal.SIGTERM if proven else signal.SIGKILL)
        self._at(time.monotonic() + self._grace, "kill", attempt)

    def _conclude(self, attempt: Attempt) -> None:
        """Say how an attempt ended whose process has. Four cases, in this order."""
        task, exited = attempt.task, attempt.exited
        if attempt.id not in self._attempts or exited is None:
            return
        died = WorkerDied(attempt.pid, exited.exit_code, exited.signal)
        if attempt.outcome is not None and attempt.stopping is not State.EXPIRED:  # 1. it told its result
            value, error = attempt.outcome.open()
            self._over(attempt, State.DONE if error is None else State.FAILED, value, error)
        elif attempt.stopping is not None:  # 2. it was told to end
            error = died if attempt.stopping is State.FAILED else None
            self._over(attempt, attempt.stopping, error=error)
        elif exited.exit_code == 0 and task.identity is not None:  # 3. it ended well, as commands do
            self._over(attempt, State.DONE, 0 if task.argv else None)
        else:  # 4. it died
            unknown = exited.exit_code is None and exited.signal is None
            self._over(attempt, State.LOST if unknown else State.FAILED, error=died)

    def _over(self, attempt: Attempt, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """End an attempt, and its task with it unless it is to be tried again."""
        task = attempt.task
        self._forget(attempt)
        again = state is State.FAILED and task.attempt <= task.retries and attempt.stopping is None
        if again and not self._closed:
            task.identity = None
            task.enter(State.WAITING)
            self._waiting[task] = attempt.call
            return
        self._end(task, state, value, error)

    def _end(self, task: Task, state: State, value: Any = None, error: BaseException | None = None) -> None:
        self._watched.pop(task, None)
        self._held_back.pop(task, None)
        task.end(state, value, error)

    def _forget(self, attempt: Attempt) -> None:
        del self._attempts[attempt.id]
        del self._by_task[attempt.task]
        if attempt.task.identity is None:
            self._unproven -= 1
        attempt.close()

    # -- starting ----------------------------------------------------------------------------------------------

    def _admit(self) -> None:
        """Start what may start, in order; those behind one that is held back may overtake it."""
        if not self._waiting or self._unproven >= AT_ONCE or self._closed:
            return
        self._load = self._measure()
        for task, call in list(self._waiting.items()):
            if self._unproven >= AT_ONCE:
                return
            why = self._holds_back(task)
            if why is not None:
                self._held_back[task] = why
                continue
            self._held_back.pop(task, None)
            if not self._launch(task, call):
                return

    def _measure(self) -> Load:
        if not len(self.rules):
            return self._load
        return self._meter.measure(
            (attempt.id, attempt.task.handler, attempt.pid) for attempt in self._attempts.values()
        )

    def _holds_back(self, task: Task) -> str | None:
        if task.can_run is not None and not task.can_run():
            return "its can_run says no"
        if task.ignores_rules or not len(self.rules):
            return None
        return self.rules.holds_back(task.handler, self._load)

    def _launch(self, task: Task, call: bytes) -> bool:
        """Ask for a process; False if none can be had just now."""
        attempt = Attempt(task, call, task.attempt + 1)
        outputs = self._logs.open(task.name, attempt.id)
        try:
            self._launcher.launch(
                Order(
                    attempt.id,
                    attempt.credential.secret,
                    payload=self._payload(attempt),
                    command=task.argv,
                    env=task.env,
                    cwd=task.cwd,
                    stdout=outputs.stdout,
                    stderr=outputs.stderr,
                )
            )
        except LaunchRefused as error:
            self._held_back[task] = str(error)
            return False
        finally:
            outputs.close()
        del self._waiting[task]
        task.attempt = attempt.number
        task.output = self._logs.paths(task.name, attempt.id)
        task.enter(State.LAUNCHING)
        self._attempts[attempt.id] = self._by_task[task] = attempt
        self._unproven += 1
        if len(self.rules):
            self._load.add(task.handler, self._meter.newcomer, 0.0)
        self._at(time.monotonic() + self._hello_timeout, "hello", attempt)
        if task.stops_siblings:
            self._stop_siblings(task)
        return True

    def _payload(self, attempt: Attempt) -> bytes:
        task = attempt.task
        work = Work(self._pickled_location, task.id, task.name, attempt.number, attempt.call, task.wrapper)
        return msgspec.msgpack.encode(work)

    def _stop_siblings(self, task: Task) -> None:
        for other, attempt in list(self._by_task.items()):
            if other is not task and other.handler == task.handler:
                self._stop(attempt, State.CANCELLED)


def _zygote(where: Location, preload: Sequence[str]) -> ZygoteLauncher:
    zygote = ZygoteLauncher(entry=f"doorman.worker:prepare:{where.scheme}", preload=preload)
    with contextlib.suppress(OSError):
        zygote.start()  # Early, so that it is warm when the first task comes; if it cannot be, a launch will say so.
    return zygote
