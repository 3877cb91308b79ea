"""The pool of worker processes that run many calls one after the other, each call a future."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from doorman._worker.outcome import TaskOutcome
from doorman._worker.signed_channel import Entry, Message, SignedReceiver, SignedSender
from doorman.errors import PoolFailed, TaskCancelled, WorkerDied
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

PREFETCH_S: Final = 0.008
"""Seconds of work to queue at a worker behind its running call: a tick of the manager may take as long.

With MAX_PREFETCH = 0 each short call costs a round trip: the rate of `make bench ONLY="Crew.submit unix"` falls to a
thirtieth, measured on two busy processors.
"""
MAX_PREFETCH: Final = 512
"""Most calls to queue at a worker behind its running call."""
MAX_START_FAILURES: Final = 3
"""With this many consecutive workers, plus the size of the crew, ended before they were ready, the crew fails.

A restart policy of `Task` does not fit: workers are started on demand, each with its own credential and crash record.
"""
CLOSE_TIMEOUT_S: Final = 3.0
"""Seconds for idle workers to exit by themselves, before they are stopped like any task."""


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
        """Whether the worker has mapped the crash record."""
        self.exiting = False
        """Whether the worker accepts no more calls."""
        self.sending: list[Call] = []
        """The calls that are being sent."""
        self.unsent: list[Message] = []
        """Their events, from when they are signed until all are sent."""
        self.calls: dict[int, Call] = {}
        """The unanswered calls by number, in the order in which they were sent."""
        self.depth = 1
        """Most unanswered calls at a time; adapted to the duration of the calls."""
        self._prefetches = False  # PREFETCH was sent. Until then the worker has one call at a time, no watch thread.
        self._call_duration = 0.0  # seconds; 0 if unknown
        self._server = server
        self._out = SignedSender(self.credential, TO_WORKER, self._post)
        self.receiver = SignedReceiver(self.credential, FROM_WORKER)

    @property
    def room(self) -> int:
        """Number of calls to send now; 0 until half of the queue is answered, so that one event carries many calls."""
        if self.sender is None or self.exiting or (self.calls and not self._prefetches):
            return 0
        room = self.depth - len(self.calls)
        return room if room * 2 >= self.depth else 0

    def send_calls(self, numbers: Iterator[int]) -> None:
        """Send the calls in `sending`, in one event if they fit; called again, complete what an interrupt has left."""
        if not self.unsent:
            entries: list[Entry] = []
            identity = None if self.task is None else self.task.identity
            for call in self.sending:
                if call._state == "RUNNING" or call.start():
                    call.worker = identity
                    call.number = call.number or next(numbers)
                    self.calls[call.number] = call
                    entries.append((call.number, Kind.CALL, call.data))
            if len(entries) > 1 and not self._prefetches:
                # In front: the watch thread must run before a long call can block the calls behind it.
                entries.insert(0, (0, Kind.PREFETCH, b""))
            self.unsent = list(self._out.signed(entries))
            self._prefetches = len(entries) > 1 or self._prefetches
        for message in self.unsent:
            self._out.post(message)
        self.sending = []
        self.unsent = []

    def request_exit(self) -> bool:
        """Request that the worker exits after its running call and returns the others; False if it is not ready."""
        if self.sender is not None:
            self._out.send([(0, Kind.LEAVE, b"")])
        return self.sender is not None

    def set_call_duration(self, nanoseconds: int) -> None:
        """Adapt the depth of the queue to the mean duration of the last calls."""
        duration = nanoseconds / 1e9
        self._call_duration = (self._call_duration + duration) / 2 if self._call_duration else duration
        ahead = MAX_PREFETCH if self._call_duration <= 0 else min(MAX_PREFETCH, int(PREFETCH_S / self._call_duration))
        self.depth = 1 + ahead

    def reset_depth(self) -> None:
        """Send one call at a time again, after the worker has returned the calls behind a long one."""
        self._call_duration, self.depth = 0.0, 1

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        # If the session is gone, the task of the worker ends as well, and the crew requeues its calls.
        with contextlib.suppress(EmitError):
            emit_now(self._server, self.sender, "doorman.calls", (serial, blob, signature))


class Crew(CallPool):
    """Up to ``workers`` processes of a manager, started on demand, each running one call after the other.

    The processes are tasks of the manager and run until the crew is closed. If one dies, it is replaced; only the
    future of its running call raises `WorkerDied`. `submit` and `cancel_waiting` are safe from any thread; the other
    methods are for the thread that owns the manager.

    max_tasks_per_child -- calls after which a worker is replaced; None: never
    max_memory_per_child -- resident bytes after a call above which a worker is replaced; None: never
    initializer, initargs -- called in each worker before its first call; if it raises, the crew fails
    limits -- memory and processor time hold for each call, the other limits for the whole process of a worker
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
        self._ended = False  # `close` has ended.
        manager._handshake.handlers["doorman.ready"][self._receive_ready] = None
        manager._handshake.handlers["doorman.results"][self._receive_results] = None

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes of the workers that are ready."""
        tasks = [worker.task for worker in tuple(self._workers.values()) if worker.sender is not None]
        return tuple(task.identity for task in tasks if task is not None and task.identity is not None)

    def run(self, timeout: float | None = None) -> None:
        """Tick the manager until no call waits or runs, or for ``timeout`` seconds."""
        self.manager._tick_until(lambda: not self.busy, timeout)

    def close(self) -> None:
        """Cancel waiting calls, let idle workers exit, and stop those that run a call. May be called twice."""
        if self._ended:
            return
        # A call that was interrupted is completed by the next one.
        self._closed = True
        self._waiting.close()
        # A copy: a task that has not started ends within `stop`, and its callback changes the dictionary.
        for worker in tuple(self._workers.values()):
            if (worker.calls or not worker.request_exit()) and worker.task is not None:
                worker.task.stop()
        # A closed manager has ended its tasks. A manager that an event loop ticks ends them after this method.
        if not self.manager.closed and self.manager._loop_driver is None:
            self.manager._tick_until(lambda: not self._workers, CLOSE_TIMEOUT_S)
        self.stop_workers()
        self.manager._handshake.handlers["doorman.ready"].pop(self._receive_ready, None)
        self.manager._handshake.handlers["doorman.results"].pop(self._receive_results, None)
        self._ended = True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _running_calls(self) -> int:
        return sum(max(len(worker.calls), len(worker.sending)) for worker in tuple(self._workers.values()))

    def _tasks(self) -> list[Task]:
        return [worker.task for worker in tuple(self._workers.values()) if worker.task is not None]

    def _assign_calls(self) -> None:
        """Send waiting calls to workers with room, in equal shares; start workers for the others."""
        waiting = self._waiting
        for worker in tuple(self._workers.values()):  # What an interrupt has left.
            if worker.sending or worker.unsent:
                worker.send_calls(self._numbers)
        while waiting:
            rooms = [(worker, room) for worker in self._workers.values() if (room := worker.room) > 0]
            if not rooms:
                break
            share = -(-len(waiting) // len(rooms))
            for worker, room in rooms:
                waiting.pop(min(room, share), worker.sending)
                worker.send_calls(self._numbers)
        # Each worker that is not ready yet will run one of the waiting calls: a burst of calls starts no more workers.
        starting = sum(worker.sender is None for worker in self._workers.values())
        for _ in range(min(len(waiting) - starting, self.size - len(self._workers))):
            self._start_worker()

    def _start_worker(self) -> None:
        name = f"{self._name}-{secrets.token_hex(6)}"
        worker = WorkerHandle(name, self.manager.server)
        record, secret = str(worker.record.path), worker.credential.secret
        config = WorkerConfig(name, secret, self._location, record, self._initializer, *self._bounds, self._limits)
        worker.task = Task(serve, config, name=self._name, limits=self._task_limits)
        worker.task._script = self._script or self._waiting.next_script()
        worker.task._retrieved = True  # Its calls report the error.
        worker.task._on_done(lambda _: self._on_worker_done(worker))
        self._workers[name] = worker
        try:
            self.manager.add_task(worker.task)
        except BaseException:
            if worker.task._manager is None:
                self._workers.pop(name, None)
            raise

    def _receive_ready(self, event: Event, again: bool) -> None:
        """Handle an event: a worker accepts calls."""
        with contextlib.suppress(ValueError, TypeError):  # Any peer may have sent anything.
            name, shares_record, signature = event.args
            worker = self._workers.get(name)
            if worker is not None and worker.credential.check(READY + shares_record, signature):
                worker.sender, worker.shares_record = event.sender, bool(shares_record)
                # The worker has mapped the file or cannot see it. Unnamed, it is not left if the manager is killed.
                worker.record.unlink()
                self._start_failures = 0
                self._schedule_dispatch()

    def _receive_results(self, event: Event, again: bool) -> None:
        """Handle an event: a worker sends results. Nothing is unpickled unless this worker has signed it."""
        try:
            name, *message = event.args
            worker = self._workers.get(name)
            entries = [] if worker is None else worker.receiver.receive(*message, again=again)
        except (ValueError, TypeError):
            self.manager.refused["result not signed by the worker"] += 1
            return
        if worker is not None:
            self._handle_entries(worker, entries, again=again)
        if self._waiting:
            self._schedule_dispatch()

    def _handle_entries(self, worker: WorkerHandle, entries: Iterable[Entry], *, again: bool = False) -> None:
        calls = worker.calls
        for number, kind, data in entries:
            call = calls.get(number) if kind <= Kind.RETURNED_UNSTARTED else None
            if call is None:
                self._handle_status(worker, number, kind, data, again)
            elif kind == Kind.RETURNED:
                call.finish_pickled(data)
            elif kind == Kind.RAISED:
                call.finish(*TaskOutcome.decode(data).unpickle())
            else:
                worker.reset_depth()
                self._waiting.requeue([call])
            if call is not None:
                calls.pop(number, None)  # Last: after an interrupt above, the entry is handled again.

    def _handle_status(self, worker: WorkerHandle, number: int, kind: int, data: bytes, again: bool) -> None:
        """Handle an entry that answers no call."""
        if kind == Kind.CALL_DURATION:
            worker.set_call_duration(number)
        elif kind == Kind.PROGRESS:
            if (call := worker.calls.get(number)) is not None:
                # Not again: a listener that raises SystemExit would do so each time.
                call.set_progress(decode_progress(data), None if again else self._on_progress)
        elif kind == Kind.LEAVING:
            worker.exiting = True
            self._schedule_dispatch()
        elif kind == Kind.INIT_FAILED:
            error = TaskOutcome.decode(data).unpickle()[1]
            self._give_up(PoolFailed(f"the workers' initializer failed: {error}"), error)

    def _on_worker_done(self, worker: WorkerHandle) -> None:
        """Finish the calls of a worker that has ended: results in the record count, only the running call is lost."""
        if worker.name not in self._workers:
            return
        started, entries = worker.record.read()
        # Results that have also arrived as events are ignored: their calls are no longer in `calls`.
        self._handle_entries(worker, entries)
        if not worker.shares_record and not worker.exiting:
            # Without a crash record the oldest unanswered call was running: each result is sent before the next call.
            started = next(iter(worker.calls), 0)
        lost = worker.calls.get(started)
        if lost is not None:
            lost.finish(None, self._death_error(worker))
        worker.calls.pop(started, None)
        self._waiting.requeue([*worker.calls.values(), *worker.sending])
        worker.calls, worker.sending = {}, []
        # Last: after an interrupt above, the manager calls this again.
        self._workers.pop(worker.name, None)
        worker.record.close()
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
