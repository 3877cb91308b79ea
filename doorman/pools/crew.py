"""The pool of worker processes that run many calls one after the other, each call a future."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from doorman._worker.outcome import TaskOutcome
from doorman._worker.signed_channel import Entry, SignedReceiver, SignedSender
from doorman.errors import PoolFailed, TaskCancelled, WorkerDied
from doorman.futures import IDLE_WAIT_S
from doorman.identity import Credential
from doorman.limits import worker_limits
from doorman.pools.call import Call, CallPool, OnCallProgress
from doorman.pools.messages import CrashRecord, Kind
from doorman.pools.pool_worker import FROM_WORKER, READY, TO_WORKER, WorkerConfig, serve
from doorman.progress import decode_progress
from doorman.states import State
from doorman.task import Task
from remit._internal import emit_now
from remit.errors import EmitError
from remit.options import check_count

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.limits import Limits
    from doorman.manager import ProcessManager
    from remit import Event, Sender, Server

__all__ = ["Crew", "WorkerHandle"]


PREFETCH_S: Final = 0.008
"""Seconds of work that a worker has queued behind its running call, since the manager's tick may take as long.

With MAX_PREFETCH = 0 each short call costs a round trip: the rate of `make bench ONLY="Crew.submit unix"` falls to a
thirtieth, measured on two busy processors.
"""
MAX_PREFETCH: Final = 512
"""Most calls that are sent to a worker and not answered."""
MAX_START_FAILURES: Final = 3
"""Workers in a row, beyond one for each place, that may end before they are ready; then the crew fails.

This is no restart policy of `Task`: workers are started on demand, each with its own credential and crash record.
"""
CLOSE_TIMEOUT_S: Final = 3.0
"""Seconds that idle workers have to exit by themselves; then they are stopped like any task."""


class WorkerHandle:
    """The manager's side of one worker: its task, its calls, and the signed messages to and from it."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.credential = Credential(name)
        self.record = CrashRecord.create()
        self.task: Task | None = None
        self.sender: Sender | None = None
        """The connection to the worker; None until it is ready."""
        self.shares_record = False
        """Whether the worker can write the crash record, too."""
        self.exiting = False
        """Whether it accepts no more calls."""
        self.calls: dict[int, Call] = {}
        """Calls that were sent and not answered, in order."""
        self.depth = 1
        """Most calls that it may have now."""
        self._prefetches = False  # It was sent PREFETCH. Until then it has one call at a time and no watch thread.
        self._call_duration = 0.0
        self._server = server
        self._out = SignedSender(self.credential, TO_WORKER, self._post)
        self._in = SignedReceiver(self.credential, FROM_WORKER)

    @property
    def room(self) -> int:
        """Number of calls that can be sent now; 0 until half of its queue is done, so that they travel together."""
        if self.sender is None or self.exiting or (self.calls and not self._prefetches):
            return 0
        room = self.depth - len(self.calls)
        return room if room * 2 >= self.depth else 0

    def set_ready(self, sender: Sender | None, *, shares_record: bool) -> None:
        """Record that the worker accepts calls from now on."""
        self.sender, self.shares_record = sender, shares_record
        # The worker has mapped the file or cannot see it. Without a name, nothing is left if the manager is killed.
        self.record.unlink()

    def send_calls(self, calls: Iterable[Call]) -> None:
        """Send calls, in one event if they fit."""
        entries: list[Entry] = []
        identity = None if self.task is None else self.task.identity
        for call in calls:
            call.worker = identity
            self.calls[call.number] = call
            entries.append((call.number, Kind.CALL, call.data))
        if len(entries) > 1 and not self._prefetches:
            self._prefetches = True
            # In front: the watch thread must run before a long call can block those behind it.
            entries.insert(0, (0, Kind.PREFETCH, b""))
        self._out.send(entries)

    def request_exit(self) -> bool:
        """Ask the worker to exit after its running call and to return the others; False if it is not ready yet."""
        if self.sender is not None:
            self._out.send([(0, Kind.LEAVE, b"")])
        return self.sender is not None

    def decode(self, serial: int, blob: bytes, signature: bytes) -> list[Entry]:
        """Return the entries of an event. Raises ValueError, TypeError if this worker has not signed it."""
        return self._in.receive(serial, blob, signature)

    def set_call_duration(self, nanoseconds: int) -> None:
        """Adapt the depth of its queue to the mean duration of its last calls."""
        duration = nanoseconds / 1e9
        self._call_duration = (self._call_duration + duration) / 2 if self._call_duration else duration
        ahead = MAX_PREFETCH if self._call_duration <= 0 else min(MAX_PREFETCH, int(PREFETCH_S / self._call_duration))
        self.depth = 1 + ahead

    def reset_depth(self) -> None:
        """Send one call at a time again: the worker has returned those behind a long one."""
        self._call_duration, self.depth = 0.0, 1

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        # A session that is gone needs no handling: the task of the worker ends, too, and the crew requeues its calls.
        with contextlib.suppress(EmitError):
            emit_now(self._server, self.sender, "doorman.calls", (serial, blob, signature))


class Crew(CallPool):
    """Up to ``workers`` processes of a manager, started on demand, each running one call after the other.

    They are tasks of the manager, proven before any user code runs, and live until the crew is closed. A worker that
    dies is replaced and costs only its running call: that future raises `WorkerDied`. Everything but `submit` and
    `cancel_waiting` is for the thread that owns the manager.

    max_tasks_per_child -- calls after which a worker is replaced; None: never
    max_memory_per_child -- resident bytes after a call above which a worker is replaced; None: never
    initializer, initargs -- called in each worker before its first call; if it raises, the crew fails
    limits -- what a worker may use: memory and seconds of processor time in each call, the rest in its whole life
    on_progress -- called with a `Call` and each `Progress` that it reports

    Raises ValueError, TaskNotPicklable.
    """

    def __init__(
        self,
        manager: ProcessManager,
        workers: int,
        *,
        max_tasks_per_child: int | None = None,
        max_memory_per_child: int | None = None,
        initializer: Callable[..., object] | None = None,
        initargs: Sequence[Any] = (),
        limits: Limits | None = None,
        on_progress: OnCallProgress | None = None,
        name: str = "worker",
    ) -> None:
        for limit, value in (("workers", workers), ("max_tasks_per_child", max_tasks_per_child)):
            if value is not None:
                check_count(limit, value)
        super().__init__(
            manager, workers, initializer=initializer, initargs=initargs, limits=limits, on_progress=on_progress
        )
        self._name = name
        self._bounds = max_tasks_per_child, max_memory_per_child
        self._task_limits = worker_limits(limits)
        self._location = pickle.dumps(manager.server.location)
        self._workers: dict[str, WorkerHandle] = {}
        self._numbers = itertools.count(1)
        self._start_failures = 0
        manager.server.add_listener("doorman.ready", self._on_ready, pass_event=True)
        manager.server.add_listener("doorman.results", self._on_results)

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes that are its workers now."""
        tasks = [worker.task for worker in tuple(self._workers.values()) if worker.sender is not None]
        return tuple(task.identity for task in tasks if task is not None and task.identity is not None)

    def run(self, timeout: float | None = None) -> None:
        """Tick the manager until no call waits or runs, or for ``timeout`` seconds."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while self.busy and (left := deadline - time.monotonic()) > 0:
            self.manager.tick()
            if self.busy:
                self.manager.wait(min(left, IDLE_WAIT_S))

    def close(self) -> None:
        """Cancel waiting calls, let idle workers exit, and stop those that run a call. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._waiting.close()
        # A copy: a task that has not started ends within `stop`, and its callback changes the dictionary.
        for worker in tuple(self._workers.values()):
            if (worker.calls or not worker.request_exit()) and worker.task is not None:
                worker.task.stop()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        # A closed manager has ended its tasks; one that an event loop ticks goes on ending them after this.
        ticks = not self.manager.closed and self.manager._loop_driver is None
        while ticks and self._workers and (left := deadline - time.monotonic()) > 0:
            self.manager.tick()
            if self._workers:
                self.manager.wait(left)
        self.stop_workers()
        self.manager.server.remove_listener("doorman.ready", self._on_ready)
        self.manager.server.remove_listener("doorman.results", self._on_results)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_calls(self) -> int:
        return sum(len(worker.calls) for worker in tuple(self._workers.values()))

    def _tasks(self) -> list[Task]:
        return [worker.task for worker in tuple(self._workers.values()) if worker.task is not None]

    # -- assigning calls ---------------------------------------------------------------------------------------

    def _assign_calls(self) -> None:
        """Send waiting calls to workers with room, in equal shares; start workers for the others."""
        waiting = self._waiting
        while waiting:
            rooms = [(worker, room) for worker in self._workers.values() if (room := worker.room) > 0]
            if not rooms:
                break
            share = -(-len(waiting) // len(rooms))
            for worker, room in rooms:
                worker.send_calls(self._pop_calls(min(room, share)))
        # Workers that are not ready yet count as places for waiting calls: a burst starts no more than it needs.
        starting = sum(worker.sender is None for worker in self._workers.values())
        for _ in range(min(len(waiting) - starting, self.size - len(self._workers))):
            self._start_worker()

    def _pop_calls(self, count: int) -> list[Call]:
        calls = self._waiting.pop(count)
        for call in calls:
            call.number = call.number or next(self._numbers)
        return calls

    # -- workers -----------------------------------------------------------------------------------------------

    def _start_worker(self) -> None:
        name = f"{self._name}-{secrets.token_hex(6)}"
        worker = WorkerHandle(name, self.manager.server)
        record, secret = str(worker.record.path), worker.credential.secret
        config = WorkerConfig(name, secret, self._location, record, self._initializer, *self._bounds, self._limits)
        worker.task = Task(serve, config, name=self._name, limits=self._task_limits)
        self._workers[name] = worker
        self.manager.add_task(worker.task)
        worker.task.future.add_done_callback(lambda _: self._on_worker_done(worker))

    def _on_ready(self, event: Event) -> None:
        """Listener: a worker accepts calls."""
        name, shares_record, signature = event.args
        worker = self._workers.get(name)
        if worker is not None and worker.credential.check(READY + shares_record, signature):
            worker.set_ready(event.sender, shares_record=bool(shares_record))
            self._start_failures = 0
            self._schedule_dispatch()

    def _on_results(self, name: Any, serial: Any, blob: Any, signature: Any) -> None:
        """Listener: a worker sends results. Nothing is unpickled unless this worker has signed it."""
        worker = self._workers.get(name)
        if worker is None:
            return
        try:
            entries = worker.decode(serial, blob, signature)
        except (ValueError, TypeError):
            self.manager.refused["result not signed by the worker"] += 1
            return
        self._handle_entries(worker, entries)
        if self._waiting:
            self._schedule_dispatch()

    def _handle_entries(self, worker: WorkerHandle, entries: Iterable[Entry]) -> None:
        calls = worker.calls
        for number, kind, data in entries:
            call = calls.pop(number, None) if kind <= Kind.RETURNED_UNSTARTED else None
            if call is None:
                self._handle_status(worker, number, kind, data)
            elif kind == Kind.RETURNED:
                call.set_pickled_result(data)
            elif kind == Kind.RAISED:
                call.set_pickled_error(data)
            else:
                worker.reset_depth()
                self._waiting.requeue([call])

    def _handle_status(self, worker: WorkerHandle, number: int, kind: int, data: bytes) -> None:
        """Handle an entry that finishes no call."""
        if kind == Kind.CALL_DURATION:
            worker.set_call_duration(number)
        elif kind == Kind.PROGRESS:
            if (call := worker.calls.get(number)) is not None:
                call.set_progress(decode_progress(data), self._on_progress)
        elif kind == Kind.LEAVING:
            worker.exiting = True
            self._schedule_dispatch()
        elif kind == Kind.INIT_FAILED:
            error = TaskOutcome.decode(data).unpickle()[1]
            self._give_up(PoolFailed(f"the workers' initializer failed: {error}"), error)

    def _on_worker_done(self, worker: WorkerHandle) -> None:
        """Finish the calls of a worker that has ended: recorded results count, only the running call is lost."""
        del self._workers[worker.name]
        started, entries = worker.record.read()
        worker.record.close()
        # Recorded results that have arrived as events, too, are ignored: their calls are no longer in `calls`.
        self._handle_entries(worker, entries)
        if not worker.shares_record and not worker.exiting:
            # Without a crash record a worker sends each result before it starts the next call.
            started = next(iter(worker.calls), 0)
        lost = worker.calls.pop(started, None)
        if lost is not None:
            lost.set_exception(self._death_error(worker))
        self._waiting.requeue(worker.calls.values())
        if worker.sender is None and not self._closed:
            self._start_failures += 1
            if self._start_failures >= self.size + MAX_START_FAILURES:
                error = self._death_error(worker)
                self._give_up(
                    PoolFailed(f"{self._start_failures} workers ended before they were ready: {error}"), error
                )
        self._on_process_done()

    def _death_error(self, worker: WorkerHandle) -> Exception:
        task = worker.task
        if self._closed or self.manager.closed or task is None:
            return TaskCancelled("the call was running when its pool was closed")
        error = None if task.state is State.CANCELLED else task.exception(0)
        if isinstance(error, Exception):
            return error
        return WorkerDied(task.identity.pid if task.identity else None, task.exit_code, task.signal)
