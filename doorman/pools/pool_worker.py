"""Serving: the child's side of a worker that is used again: take calls, run them, tell what came of each."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import resource
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

import msgspec

from doorman._worker.connection import REPORT_LINGER_S
from doorman._worker.outcome import failed
from doorman._worker.pickling import pickle_value
from doorman.current import CurrentTask, current_task, task_context
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.limits import CallLimits, Limits
from doorman.pools.messages import CrashRecord, Entry, Incoming, Kind, Outgoing
from doorman.progress import Progress, ProgressReporter, packed
from remit import Client
from remit._internal import has_room, set_ack_delay
from remit.transport import register_after_fork

__all__ = ["FROM_WORKER", "READY", "TO_WORKER", "CallRunner", "WorkerConfig", "resident", "serve"]


class CallRunner:
    """Runs calls. ``tell`` is called with the number of the call and its progress, in any thread."""

    def __init__(self, limits: Limits | None, tell: Callable[[int, Progress], None]) -> None:
        self._confinement = None if limits is None else CallLimits(limits)
        self._tell = tell
        self._number = 0
        self._reporter: ProgressReporter | None = None
        self._owner = os.getpid()

    def run(self, number: int, data: bytes) -> tuple[int, bytes]:
        """Run a call; return what came of it, behind whose last progress nothing is told."""
        self._number = number
        kind, data = self._outcome(data)
        if self._reporter is not None:
            self._reporter.flush()
            self._reporter = None
        return kind, data

    def report(self, progress: Progress) -> None:
        """Tell how far the call that runs has come, or let it wait for what is newer. Raises NotInTask in a fork."""
        if os.getpid() != self._owner:
            raise NotInTask("a fork of the worker has no progress of its own: report from the call itself")
        reporter = self._reporter
        if reporter is None:
            reporter = self._reporter = ProgressReporter(functools.partial(self._tell, self._number))
        reporter.report(progress)

    def limits_lifted(self) -> contextlib.AbstractContextManager[None]:
        """A block of the worker's that runs beside a call, which may have used up all that it may have."""
        return contextlib.nullcontext() if self._confinement is None else self._confinement.suspended()

    def after_fork(self) -> None:
        """In a fork of a call's: no other thread is here."""
        if self._confinement is not None:
            self._confinement.reset_after_fork()

    def _outcome(self, data: bytes) -> tuple[int, bytes]:
        """Run a call; return what came of it."""
        try:
            value = self._call(data)
        except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
            return Kind.RAISED, failed(error).encode()
        try:
            return Kind.RETURNED, pickle_value(value)
        except BaseException as error:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
            reason = TypeError(f"the call returned a {type(value).__qualname__} that cannot be pickled: {error}")
            reason.__cause__ = error
            return Kind.RAISED, failed(reason).encode()

    def _call(self, data: bytes) -> Any:
        if self._confinement is None:
            fn, args, kwargs = pickle.loads(data)
            return fn(*args, **kwargs)
        with self._confinement:
            fn, args, kwargs = pickle.loads(data)
            return fn(*args, **kwargs)


def resident() -> int:
    """Return the bytes of memory that this process has resident now."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - after each call
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


TO_WORKER: Final = b"doorman.calls"
FROM_WORKER: Final = b"doorman.results"
"""What is signed along with a parcel, so that none can be turned around."""
READY: Final = b"doorman.ready"
"""What is signed along with whether a worker shares its page."""

ACK_DELAY_S: Final = 0.05
"""Seconds that the manager may wait for a word on calls that have come: with their results, unless they take longer."""
REPORT_INTERVAL_S: Final = 0.002
"""Seconds of short calls whose results travel together."""
LONG_CALL_S: Final = 0.005
"""Seconds that a call may run before those that wait behind it are given back, and results before it are told."""
WATCH_INTERVAL_S: Final = 0.005
"""Seconds between two looks at a call that is young."""
IDLE_CHECKS: Final = 200
"""Looks without a call after which nobody looks until there is one."""
LONG_CALL_INTERVAL_S: Final = 0.05
"""Seconds between two looks at the connection while a call runs for long."""
IDLE_WAIT_S: Final = 60.0
"""Seconds that a worker without a call sleeps at a time at the most."""
FLUSH_TIMEOUT_S: Final = 5.0
"""Seconds after which a worker asks again whether the manager has its results."""


class WorkerConfig(msgspec.Struct, frozen=True):
    """What a worker has to know of its employment."""

    worker: str
    secret: bytes
    location: bytes
    """The manager's, pickled."""
    page: str
    initializer: bytes = b""
    """A pickled function with its arguments; empty for none."""
    most_calls: int | None = None
    most_memory: int | None = None
    """Bytes."""
    limits: Limits | None = None


def serve(terms: WorkerConfig) -> None:
    """Task: be a worker until told to leave, or until it has served for as long as it may."""
    serving = PoolWorker(terms)
    with task_context(
        CurrentTask(terms.worker, current_task().attempt, serving.emit, current_task().on, serving.report)
    ):
        serving.run()


class PoolWorker:
    """A worker at work. The link is its own thread's, and for moments the watch's: whoever uses it holds the lock."""

    def __init__(self, terms: WorkerConfig) -> None:
        credential = Credential(terms.worker, terms.secret)
        self._terms = terms
        self._credential = credential
        self._client = Client(pickle.loads(terms.location), threaded=False, linger=REPORT_LINGER_S)
        self._client.add_listener("doorman.calls", self._on_calls)
        self._lock = threading.RLock()
        register_after_fork(self._after_fork)
        self._record = CrashRecord.open(Path(terms.page))
        self._in = Incoming(credential, TO_WORKER)
        self._out = Outgoing(credential, FROM_WORKER, self._post)
        self._calls: deque[Entry] = deque()
        self._results: deque[Entry] = deque()
        self._served = 0
        self._leaving = False
        self._call_started: float | None = None
        """When the call that runs began."""
        self._execution = CallRunner(terms.limits, self._send_progress)
        self._watch: threading.Thread | None = None
        self._watching = threading.Event()
        """Set unless the watch sleeps until there is a call."""
        self._watching.set()

    def run(self) -> None:
        """Work until it is over."""
        fit = self._initialize()
        with self._lock:
            shares = b"shares" if self._record is not None else b""
            self._client.emit("doorman.ready", self._terms.worker, shares, self._credential.sign(READY + shares))
            set_ack_delay(self._client, ACK_DELAY_S)
        while fit and not self._leaving:
            with self._lock:
                self._client.tick(0.0 if self._calls else IDLE_WAIT_S)
            self._run_calls()
        self._close()

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event of a call's own: before its result, since both go the same way."""
        with self._lock:
            self._client.emit(name, *args, **kwargs)

    def report(self, progress: Progress) -> None:
        """Tell how far the call that runs has come, or let it wait for what is newer. Raises NotInTask in a fork."""
        self._execution.report(progress)

    # -- calls -------------------------------------------------------------------------------------------------

    def _initialize(self) -> bool:
        """Run the initializer, if there is one; False if it failed."""
        if not self._terms.initializer:
            return True
        try:
            initializer, initargs = pickle.loads(self._terms.initializer)
            initializer(*initargs)
        except BaseException as error:  # noqa: BLE001 - whatever it is, the manager has to know
            self._results.append((0, Kind.INIT_FAILED, failed(error).encode()))
            return False
        return True

    def _run_calls(self) -> None:
        """Run the calls that are here; tell results as they become old."""
        began = told = time.monotonic()
        since = 0
        while self._calls and not self._leaving:
            try:
                number, kind, data = self._calls.popleft()
            except IndexError:
                break  # The watch was faster, and gave it back.
            if kind == Kind.LEAVE:
                self._leaving = True
                break
            if kind == Kind.PREFETCH:
                self._start_watch()
                continue
            if self._record is not None:
                self._record.record_start(number)
            self._call_started = began
            if not self._watching.is_set():  # In this order: the watch looks for a call after it has cleared that.
                self._watching.set()
            kind, data = self._execution.run(number, data)
            self._call_started = None
            self._store_result((number, kind, data))
            since += 1
            began = time.monotonic()
            if began - told >= REPORT_INTERVAL_S:
                self._exchange(int((began - told) * 1e9) // since)
                told, since = began, 0
        if since:
            self._send_results(int((began - told) * 1e9) // since)  # Whoever called this is about to hear.

    def _start_watch(self) -> None:
        # Only when told to: a worker that never has more than one call in hand stays a process of one thread.
        if self._watch is None:
            self._watch = threading.Thread(target=self._watch_calls, name="doorman-watch", daemon=True)
            self._watch.start()

    def _store_result(self, result: Entry) -> None:
        """Put a result where it outlives this process, and see whether the last one may have been the last."""
        self._results.append(result)
        self._served += 1
        terms = self._terms
        if terms.most_calls is not None and self._served >= terms.most_calls:
            self._leaving = True
        if terms.most_memory is not None and resident() > terms.most_memory:
            self._leaving = True
        page = self._record
        if page is None or not page.record_result(*result):
            self._flush_results()
            if page is not None:
                page.clear_results()

    # -- the connection ----------------------------------------------------------------------------------------

    def _on_calls(self, serial: int, blob: bytes, signature: bytes) -> None:
        """Listener: the manager gives calls. Nothing that somebody else signed is ever unpickled."""
        with contextlib.suppress(ValueError, TypeError):
            self._calls.extend(self._in.take(serial, blob, signature))

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        self._client.emit("doorman.results", self._terms.worker, serial, blob, signature)

    def _send_progress(self, number: int, progress: Progress) -> None:
        with self._execution.limits_lifted(), self._lock:
            if has_room(self._client):  # Else nobody hears it now, and the call must not wait for that.
                self._out.send([(number, Kind.PROGRESS, packed(number, progress))])
                self._client.tick()

    def _exchange(self, pace: int = 0) -> None:
        """Send the results, and hear what has come meanwhile."""
        with self._lock:
            self._send_results(pace)
            self._client.tick()

    def _send_results(self, pace: int = 0) -> None:
        with self._lock:
            entries = self._pop_results()
            if pace and entries:
                entries.append((pace, Kind.CALL_DURATION, b""))
            self._out.send(entries)

    def _pop_results(self) -> list[Entry]:
        entries = []
        while self._results:
            entries.append(self._results.popleft())
        return entries

    def _flush_results(self) -> None:
        """Wait until the manager has everything. It is bounded by the manager's life, which ends this process's."""
        with self._lock:
            self._out.send(self._pop_results())
            while not self._client.flush(FLUSH_TIMEOUT_S):
                continue

    def _return_calls(self) -> None:
        back: list[Entry] = []
        while self._calls:
            with contextlib.suppress(IndexError):
                number, kind, _ = self._calls.popleft()
                if kind == Kind.LEAVE:
                    self._leaving = True
                elif kind == Kind.CALL:
                    back.append((number, Kind.RETURNED_UNSTARTED, b""))
        self._results.extend(back)

    def _close(self) -> None:
        self._return_calls()
        self._results.append((0, Kind.LEAVING, b""))
        with self._lock:
            self._out.send(self._pop_results())
            self._client.close(REPORT_LINGER_S)

    # -- the watch ---------------------------------------------------------------------------------------------

    def _watch_calls(self) -> None:
        """Thread: while a call runs for long, nothing waits behind it, and the connection is looked after."""
        quiet = 0
        while True:
            time.sleep(WATCH_INTERVAL_S)
            since = self._call_started
            quiet = quiet + 1 if since is None else 0
            if quiet > IDLE_CHECKS:
                self._watching.clear()
                if self._call_started is None:
                    self._watching.wait(IDLE_WAIT_S)
                self._watching.set()
                quiet = 0
            while since is not None and time.monotonic() - since > LONG_CALL_S and self._call_started == since:
                with self._execution.limits_lifted():
                    self._return_calls()
                    self._exchange()
                    if self._calls:  # They came just now.
                        self._return_calls()
                        self._exchange()
                time.sleep(LONG_CALL_INTERVAL_S)

    def _after_fork(self) -> None:
        """In a fork of a call's: it is not the worker, and the watch, which may hold the lock, is not here."""
        self._credential.drop_secret()
        self._record = None  # Shared with the worker, which has results there that nobody has heard of.
        self._lock = threading.RLock()
        self._execution.after_fork()
