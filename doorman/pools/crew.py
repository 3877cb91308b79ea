"""Crew: proven workers of a manager that serve many calls one after the other, each call a future."""

from __future__ import annotations

import contextlib
import itertools
import pickle
import secrets
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, Final, Self

from doorman._scheduler.base_manager import check_listeners
from doorman._worker.outcome import Outcome
from doorman._worker.pickling import pickle_value
from doorman.errors import PoolFailed, TaskCancelled, WorkerDied
from doorman.identity import Credential
from doorman.limits import worker_limits
from doorman.pools.call import Call, OnCallProgress, PendingCalls
from doorman.pools.messages import CrashRecord, Entry, Incoming, Kind, Outgoing
from doorman.pools.pool_worker import FROM_WORKER, READY, TO_WORKER, WorkerConfig, serve
from doorman.progress import unpacked
from doorman.states import State
from doorman.task import Task
from remit._patterns.request_reply import session_of
from remit.errors import EmitError

if TYPE_CHECKING:
    from doorman.identity import Identity
    from doorman.limits import Limits
    from doorman.manager import ProcessManager
    from remit import Event, Sender, Server

__all__ = ["Crew", "WorkerHandle"]


PREFETCH_S: Final = 0.008
"""Seconds of work that a worker has before it, beyond what it does: the manager may be as long at something else."""
MAX_PREFETCH: Final = 512
"""Calls that a worker has in hand at once at the most."""


class WorkerHandle:
    """One worker."""

    def __init__(self, name: str, server: Server) -> None:
        self.name = name
        self.credential = Credential(name)
        self.record = CrashRecord.create()
        self.task: Task | None = None
        self.sender: Sender | None = None
        """The way to it; None until it is ready."""
        self.shares_record = False
        """Whether it writes on the page, too."""
        self.leaving = False
        """Whether it takes no more calls."""
        self.calls: dict[int, Call] = {}
        """What it has been given and has not answered, in order."""
        self.depth = 1
        """Calls that it may have in hand."""
        self._prefetches = False
        """Whether it was told to look after calls that wait behind a long one; one that was not has one at a time."""
        self._call_duration = 0.0
        self._server = server
        self._out = Outgoing(self.credential, TO_WORKER, self._post)
        self._in = Incoming(self.credential, FROM_WORKER)

    @property
    def room(self) -> int:
        """Calls that it may be given now; 0 until a good part of what it has is done, so that they travel together."""
        if self.sender is None or self.leaving or (self.calls and not self._prefetches):
            return 0
        room = self.depth - len(self.calls)
        return room if room * 2 >= self.depth else 0

    def set_ready(self, sender: Sender | None, *, shares: bool) -> None:
        """It is ready, and reached by ``sender``."""
        self.sender, self.shares_record = sender, shares
        self.record.unlink()

    def send_calls(self, calls: Iterable[Call]) -> None:
        """Send it calls."""
        entries: list[Entry] = []
        identity = None if self.task is None else self.task.identity
        for call in calls:
            call.worker = identity
            self.calls[call.number] = call
            entries.append((call.number, Kind.CALL, call.data))
        if len(entries) > 1 and not self._prefetches:
            self._prefetches = True
            entries.insert(0, (0, Kind.PREFETCH, b""))
        self._out.send(entries)

    def request_exit(self) -> bool:
        """Tell it to end after what it runs, and to give back the rest; False if it cannot hear that yet."""
        if self.sender is not None:
            self._out.send([(0, Kind.LEAVE, b"")])
        return self.sender is not None

    def decode(self, serial: int, blob: bytes, signature: bytes) -> list[Entry]:
        """Return what it says. Raises ValueError, TypeError if it was not this worker who said that."""
        return self._in.take(serial, blob, signature)

    def set_call_duration(self, nanoseconds: int) -> None:
        """Learn how long its last calls took each, and give it as many as will keep it busy, but no more."""
        pace = nanoseconds / 1e9
        self._call_duration = (self._call_duration + pace) / 2 if self._call_duration else pace
        self.depth = (
            1 + min(MAX_PREFETCH, int(PREFETCH_S / self._call_duration)) if self._call_duration > 0 else MAX_PREFETCH
        )

    def reset_depth(self) -> None:
        """Forget how fast it was: it has given back what waited behind a long call."""
        self._call_duration, self.depth = 0.0, 1

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        # Its session ends with it, and then its crew learns what it had not begun.
        with contextlib.suppress(EmitError):
            self._server.post_now(session_of(self.sender), "doorman.calls", (serial, blob, signature))


MAX_START_FAILURES: Final = 3
"""Workers in a row, beyond one for each place, that may end before they are ready; then the crew is given up."""
CLOSE_TIMEOUT_S: Final = 3.0
"""Seconds that idle workers have to end by themselves; then they are stopped like any task."""
IDLE_WAIT_S: Final = 60.0
"""Seconds that `Crew.run` waits at a time at the most."""


class Crew:
    """Up to ``workers`` processes of a manager's, started when there is work, each serving one call after the other.

    They are tasks of the manager, proven before anything of yours runs, and live until the crew is closed. A worker
    that dies is replaced and costs the one call that it was running: that future raises `WorkerDied`. Everything but
    `submit` and `cancel_waiting` is for the thread that owns the manager.

    max_tasks_per_child -- calls after which a worker is replaced; None: never
    max_memory_per_child -- bytes resident after a call above which it is replaced; None: never
    initializer, initargs -- called in each worker before its first call; one that raises makes the crew fail
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
            if value is not None and value < 1:
                raise ValueError(f"{limit} is at least 1, not {value!r}")
        self.manager = manager
        self.size = workers
        self.failed: PoolFailed | None = None
        """Why it takes no more calls."""
        self._name = name
        check_listeners(on_progress=on_progress)
        self._on_progress = on_progress
        self._bounds = max_tasks_per_child, max_memory_per_child
        self._limits, self._for_life = limits, worker_limits(limits)
        self._initializer = b"" if initializer is None else pickle_value((initializer, tuple(initargs)))
        self._location = pickle.dumps(manager.server.location)
        self._waiting = PendingCalls()
        self._workers: dict[str, WorkerHandle] = {}
        self._numbers = itertools.count(1)
        self._dispatch_scheduled = self._closed = False
        self._start_failures = 0
        manager.server.add_listener("doorman.ready", self._on_ready, pass_event=True)
        manager.server.add_listener("doorman.results", self._on_results)

    # -- for those who want ------------------------------------------------------------------------------------

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Call:
        """Call ``fn(*args, **kwargs)`` in a worker; return the future of its result. Safe from any thread.

        The future raises what the function raised, with `TaskFailed`, which holds the worker's traceback, as its cause;
        TaskNotPicklable if the call cannot travel. Raises PoolFailed; ValueError after `close`, or the manager's.
        """
        if self.failed is not None:
            raise self.failed
        if self._closed or self.manager.closed:
            raise ValueError("this crew is closed, or its manager is")
        call = Call(self.manager)
        if call.pickle_call(fn, args, kwargs):
            self._waiting.add(call)
            self._schedule_dispatch()
        return call

    def cancel_waiting(self) -> int:
        """Cancel the calls that no worker has yet; return how many. Safe from any thread."""
        return self._waiting.cancel_all()

    def _cancel_rest(self) -> None:
        """Cancel the calls that no worker has yet, and from now on those that workers give back unbegun."""
        self._waiting.close()

    @property
    def busy(self) -> bool:
        """Whether any call waits or runs."""
        return bool(self._waiting) or any(hand.calls for hand in tuple(self._workers.values()))

    @property
    def _unfinished(self) -> int:
        """How many calls wait or run."""
        return len(self._waiting) + sum(len(hand.calls) for hand in tuple(self._workers.values()))

    @property
    def workers(self) -> tuple[Identity, ...]:
        """The processes that are its workers now."""
        tasks = [hand.task for hand in tuple(self._workers.values()) if hand.sender is not None]
        return tuple(task.identity for task in tasks if task is not None and task.identity is not None)

    def run(self, timeout: float | None = None) -> None:
        """Make progress until no call waits or runs, or ``timeout`` seconds have passed."""
        deadline = float("inf") if timeout is None else time.monotonic() + timeout
        while self.busy and (left := deadline - time.monotonic()) > 0:
            self.manager.tick()
            if self.busy:
                self.manager.wait(min(left, IDLE_WAIT_S))

    def stop_workers(self, *, kill: bool = False) -> None:
        """Stop the workers, whatever they run: by SIGTERM and after the manager's grace SIGKILL, or that at once."""
        for hand in tuple(self._workers.values()):
            if hand.task is not None:
                hand.task.stop(kill=kill)

    def close(self) -> None:
        """Cancel what waits, have idle workers end, and stop those that run something. May be called twice."""
        if self._closed:
            return
        self._closed = True
        self._waiting.close()
        for hand in tuple(self._workers.values()):
            if (hand.calls or not hand.request_exit()) and hand.task is not None:
                hand.task.stop()
        deadline = time.monotonic() + CLOSE_TIMEOUT_S
        while self._ticked_here and (left := deadline - time.monotonic()) > 0:
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

    @property
    def _ticked_here(self) -> bool:
        """Whether there are workers, and whoever closes the crew may tick until they have ended."""
        return bool(self._workers) and not self.manager.closed and self.manager._loop_driver is None

    # -- giving out calls --------------------------------------------------------------------------------------

    def _schedule_dispatch(self) -> None:
        """Have `_dispatch` called in the next tick, once."""
        if not self._dispatch_scheduled:
            self._dispatch_scheduled = True
            self.manager._call_soon(self._dispatch)

    def _dispatch(self) -> None:
        """Give what waits to workers that have room, evenly; start more workers if none has."""
        self._dispatch_scheduled = False
        if self.manager.closed:
            self._fail_waiting()
        waiting = self._waiting
        while waiting:
            rooms = [(hand, room) for hand in self._workers.values() if (room := hand.room) > 0]
            if not rooms:
                break
            share = -(-len(waiting) // len(rooms))
            for hand, room in rooms:
                hand.send_calls(self._pop_calls(min(room, share)))
        starting = sum(hand.sender is None for hand in self._workers.values())
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
        hand = WorkerHandle(name, self.manager.server)
        page, secret = str(hand.record.path), hand.credential.secret
        terms = WorkerConfig(name, secret, self._location, page, self._initializer, *self._bounds, self._limits)
        hand.task = Task(serve, terms, name=self._name, limits=self._for_life)
        self._workers[name] = hand
        self.manager.add_task(hand.task)
        hand.task.future.add_done_callback(lambda _: self._on_worker_done(hand))

    def _on_ready(self, event: Event) -> None:
        """Listener: a worker may be given calls."""
        named, shares, signature = event.args
        hand = self._workers.get(named)
        if hand is not None and hand.credential.check(READY + shares, signature):
            hand.set_ready(event.sender, shares=bool(shares))
            self._start_failures = 0
            self._schedule_dispatch()

    def _on_results(self, named: Any, serial: Any, blob: Any, signature: Any) -> None:
        """Listener: a worker tells results. Nothing that somebody else signed is ever unpickled."""
        hand = self._workers.get(named)
        if hand is None:
            return
        try:
            entries = hand.decode(serial, blob, signature)
        except (ValueError, TypeError):
            self.manager.refused["result not signed by the worker"] += 1
            return
        self._handle_entries(hand, entries)
        if self._waiting:
            self._schedule_dispatch()

    def _handle_entries(self, hand: WorkerHandle, entries: Iterable[Entry]) -> None:
        calls = hand.calls
        for number, kind, data in entries:
            call = calls.pop(number, None) if kind <= Kind.RETURNED_UNSTARTED else None
            if call is None:
                self._handle_status(hand, number, kind, data)
            elif kind == Kind.RETURNED:
                call.set_pickled_result(data)
            elif kind == Kind.RAISED:
                call.set_pickled_error(data)
            else:
                hand.reset_depth()
                self._waiting.requeue([call])

    def _handle_status(self, hand: WorkerHandle, number: int, kind: int, data: bytes) -> None:
        """Hear what a worker says of itself."""
        if kind == Kind.CALL_DURATION:
            hand.set_call_duration(number)
        elif kind == Kind.PROGRESS:
            if (call := hand.calls.get(number)) is not None:
                call.set_progress(unpacked(data)[1], self._on_progress)
        elif kind == Kind.LEAVING:
            hand.leaving = True
            self._schedule_dispatch()
        elif kind == Kind.INIT_FAILED:
            error = Outcome.decode(data).unpickle()[1]
            self._give_up(PoolFailed(f"the workers' initializer failed: {error}"), error)

    def _on_worker_done(self, hand: WorkerHandle) -> None:
        """Bury a worker: what it had told counts, what it was running is lost, what it had not begun goes to others."""
        del self._workers[hand.name]
        begun, entries = hand.record.read()
        hand.record.close()
        self._handle_entries(hand, entries)
        if not hand.shares_record and not hand.leaving:
            begun = next(iter(hand.calls), 0)  # It tells each result before it begins anything else.
        lost = hand.calls.pop(begun, None)
        if lost is not None:
            lost.set_exception(self._death_error(hand))
        self._waiting.requeue(hand.calls.values())
        if hand.sender is None and not self._closed:
            self._start_failures += 1
            if self._start_failures >= self.size + MAX_START_FAILURES:
                error = self._death_error(hand)
                self._give_up(
                    PoolFailed(f"{self._start_failures} workers ended before they were ready: {error}"), error
                )
        if self.manager.closed:
            self._fail_waiting()
        elif self._waiting:
            self._schedule_dispatch()

    def _death_error(self, hand: WorkerHandle) -> Exception:
        task = hand.task
        if self._closed or self.manager.closed or task is None:
            return TaskCancelled("the call was running when its pool was closed")
        error = None if task.state is State.CANCELLED else task.exception(0)
        if isinstance(error, Exception):
            return error
        return WorkerDied(task.identity.pid if task.identity else None, task.exit_code, task.signal)

    def _give_up(self, failure: PoolFailed, cause: BaseException | None) -> None:
        """Run nothing more: what waits fails, and so does every later `submit`."""
        failure.__cause__ = cause
        self.failed = failure
        self._waiting.fail(failure)

    def _fail_waiting(self) -> None:
        """The manager is closed: nobody runs anything any more."""
        self._closed = True
        self._waiting.fail(TaskCancelled("the call waited when its manager was closed"))
