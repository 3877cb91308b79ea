"""Worker process of a crew: receives calls, runs them one after the other and sends the results."""

from __future__ import annotations

import contextlib
import functools
import os
import pickle
import resource
import threading
import time
from collections import deque
from pathlib import Path
from typing import Any, Final

import msgspec

from doorman._worker.connection import REPORT_LINGER_S
from doorman._worker.outcome import failed, not_returnable
from doorman._worker.pickling import pickle_value, run_initializer, unpickle
from doorman._worker.signed_channel import Entry, SignedReceiver, SignedSender
from doorman.current import CurrentTask, current_task, task_context
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.limits import CallLimits, Limits
from doorman.pools.messages import CrashRecord, Kind
from doorman.progress import Progress, ProgressReporter, encode_progress
from remit import Client
from remit._internal import has_room, set_ack_delay
from remit.transport import register_after_fork

TO_WORKER: Final = b"doorman.calls"
FROM_WORKER: Final = b"doorman.results"
"""Directions. They are part of what is signed, so that a message cannot be sent back to its sender."""
READY: Final = b"doorman.ready"
"""Purpose of the signature over the flag whether the worker has mapped its crash record."""

ACK_DELAY_S: Final = 0.05
"""Seconds to delay the acknowledgement of received calls, so that one frame usually carries it and their results."""
REPORT_INTERVAL_S: Final = 0.002
"""Seconds between two sends of results, so that one event carries the results of many short calls."""
LONG_CALL_S: Final = 0.005
"""Seconds after which a call is long: then earlier results are sent, and the calls behind it are returned."""
WATCH_INTERVAL_S: Final = 0.005
"""Seconds between two checks of the running call by the watch thread."""
IDLE_CHECKS: Final = 200
"""Checks without a running call, after which the watch thread sleeps until the next call."""
LONG_CALL_INTERVAL_S: Final = 0.05
"""Seconds between two uses of the connection during a long call."""
IDLE_WAIT_S: Final = 60.0
"""Longest wait in seconds of a worker without calls. Every event ends it."""
FLUSH_TIMEOUT_S: Final = 5.0
"""Longest wait in seconds of one flush, which is repeated until the manager has acknowledged all results."""


class WorkerConfig(msgspec.Struct, frozen=True):
    """Configuration of a worker, an argument of its task."""

    worker: str
    secret: bytes
    location: bytes
    """The pickled location of the manager."""
    record: str
    """Path of the crash record."""
    initializer: bytes = b""
    """A pickled function with its arguments; empty for none."""
    most_calls: int | None = None
    most_memory: int | None = None
    """Bytes."""
    limits: Limits | None = None


def serve(config: WorkerConfig) -> None:
    """Run a worker until its manager stops it or it reaches a bound of its configuration. The callable of its task."""
    worker, task = PoolWorker(config), current_task()
    with task_context(CurrentTask(config.worker, task.attempt, worker.emit, task.on, worker.report)):
        worker.run()


class PoolWorker:
    """State of a worker process. The main thread runs the calls, and uses the connection between two calls.

    During a long call the watch thread uses the connection. The lock is held for each use.
    """

    def __init__(self, config: WorkerConfig) -> None:
        credential = Credential(config.worker, config.secret)
        self._config = config
        self._credential = credential
        self._client = Client(pickle.loads(config.location), threaded=False, linger=REPORT_LINGER_S)
        self._client.add_listener("doorman.calls", self._on_calls)
        self._lock = threading.RLock()
        register_after_fork(self._after_fork)
        self._record = CrashRecord.open(Path(config.record))
        self._in = SignedReceiver(credential, TO_WORKER)
        self._out = SignedSender(credential, FROM_WORKER, self._post)
        self._calls: deque[Entry] = deque()
        self._results: deque[Entry] = deque()
        self._limits = None if config.limits is None else CallLimits(config.limits)
        self._reporter: ProgressReporter | None = None
        self._number = self._served = 0
        self._pid = os.getpid()
        self._leaving = False
        self._call_started: float | None = None
        """Monotonic start of the running call. Written by the main thread, read by the watch thread without a lock."""
        self._watch: threading.Thread | None = None
        self._watching = threading.Event()
        """Cleared while the watch thread sleeps until there is a call."""
        self._watching.set()

    def run(self) -> None:
        """Run calls until the worker is to exit."""
        fit = self._initialize()
        with self._lock:
            shares = b"shares" if self._record is not None else b""
            self._client.emit("doorman.ready", self._config.worker, shares, self._credential.sign(READY + shares))
            set_ack_delay(self._client, ACK_DELAY_S)
        while fit and not self._leaving:
            with self._lock:
                self._client.tick(0.0 if self._calls else IDLE_WAIT_S)
            self._run_calls()
        self._close()

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event of the running call. It arrives before the result, which the same connection carries."""
        with self._lock:
            self._client.emit(name, *args, **kwargs)

    def report(self, progress: Progress) -> None:
        """Send progress of the running call now, or later unless a newer report replaces it. Raises NotInTask."""
        if os.getpid() != self._pid:
            raise NotInTask("a forked child of the worker cannot report progress: report from the call itself")
        reporter = self._reporter
        if reporter is None:
            reporter = self._reporter = ProgressReporter(functools.partial(self._send_progress, self._number))
        reporter.report(progress)

    def _initialize(self) -> bool:
        """Run the initializer, if there is one; return False if it fails."""
        try:
            run_initializer(self._config.initializer)
        except BaseException as error:  # noqa: BLE001 - every error fails the crew
            self._results.append((0, Kind.INIT_FAILED, failed(error).encode()))
            return False
        return True

    def _run_calls(self) -> None:
        """Run the received calls, and send results every `REPORT_INTERVAL_S`."""
        began = sent = time.monotonic()
        unsent = 0
        while self._calls and not self._leaving:
            try:
                number, kind, data = self._calls.popleft()
            except IndexError:
                break  # The watch thread has just returned the last call.
            if kind == Kind.LEAVE:
                self._leaving = True
                break
            if kind == Kind.PREFETCH:
                self._start_watch()
                continue
            if self._record is not None:
                self._record.record_start(number)
            self._call_started = began
            # After the start was set: the watch thread first clears the event and then reads the start.
            if not self._watching.is_set():
                self._watching.set()
            kind, data = self._run_call(number, data)
            self._call_started = None
            self._store_result((number, kind, data))
            unsent += 1
            began = time.monotonic()
            if began - sent >= REPORT_INTERVAL_S:
                self._exchange(int((began - sent) * 1e9) // unsent)
                sent, unsent = began, 0
        if unsent:
            self._send_results(int((began - sent) * 1e9) // unsent)  # `run` receives calls right after this.

    def _run_call(self, number: int, data: bytes) -> tuple[int, bytes]:
        """Run a call and return the kind and data of its result. All its progress is sent before this returns."""
        self._number = number
        kind, data = self._outcome(data)
        if self._reporter is not None:
            self._reporter.flush()
            self._reporter = None
        return kind, data

    def _outcome(self, data: bytes) -> tuple[int, bytes]:
        try:
            value = self._call(data)
        except BaseException as error:  # noqa: BLE001 - every error is the result of the call
            return Kind.RAISED, failed(error).encode()
        try:
            return Kind.RETURNED, pickle_value(value)
        except BaseException as error:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            return Kind.RAISED, failed(not_returnable(value, error)).encode()

    def _call(self, data: bytes) -> Any:
        if self._limits is None:
            fn, args, kwargs = unpickle(data)
            return fn(*args, **kwargs)
        with self._limits:
            fn, args, kwargs = unpickle(data)
            return fn(*args, **kwargs)

    def _limits_lifted(self) -> contextlib.AbstractContextManager[None]:
        """Lift the limits of the running call for a block of the worker's own code."""
        return contextlib.nullcontext() if self._limits is None else self._limits.suspended()

    def _start_watch(self) -> None:
        # Only on request: with one call at a time the process of a worker has one thread, so that a call can fork.
        if self._watch is None:
            self._watch = threading.Thread(target=self._watch_calls, name="doorman-watch", daemon=True)
            self._watch.start()

    def _store_result(self, result: Entry) -> None:
        """Store a result in the crash record, which outlives this process, and check the bounds of the worker."""
        self._results.append(result)
        self._served += 1
        config = self._config
        if config.most_calls is not None and self._served >= config.most_calls:
            self._leaving = True
        if config.most_memory is not None and resident() > config.most_memory:
            self._leaving = True
        # Without room in the record, the manager must have the result before the next call, which may end this process.
        record = self._record
        if record is None or not record.record_result(*result):
            self._flush_results()
            if record is not None:
                record.clear_results()

    def _on_calls(self, serial: int, blob: bytes, signature: bytes) -> None:
        """Listener: the manager sends calls. Nothing is unpickled unless the manager has signed it."""
        with contextlib.suppress(ValueError, TypeError):
            self._calls.extend(self._in.receive(serial, blob, signature))

    def _post(self, serial: int, blob: bytes, signature: bytes) -> None:
        self._client.emit("doorman.results", self._config.worker, serial, blob, signature)

    def _send_progress(self, number: int, progress: Progress) -> None:
        with self._limits_lifted(), self._lock:
            if has_room(self._client):  # Otherwise drop the report: the call must not wait for a slow manager.
                self._out.send([(number, Kind.PROGRESS, encode_progress(progress))])
                self._client.tick()

    def _exchange(self, pace: int = 0) -> None:
        """Send results and receive calls."""
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
        return [self._results.popleft() for _ in range(len(self._results))]

    def _flush_results(self) -> None:
        """Wait until the manager has all results. If the manager dies, this process is killed."""
        with self._lock:
            self._out.send(self._pop_results())
            while not self._client.flush(FLUSH_TIMEOUT_S):
                continue

    def _return_calls(self) -> None:
        """Return the calls that have not started, so that other workers can run them."""
        while self._calls:
            with contextlib.suppress(IndexError):
                number, kind, _ = self._calls.popleft()
                if kind == Kind.LEAVE:
                    self._leaving = True
                elif kind == Kind.CALL:
                    self._results.append((number, Kind.RETURNED_UNSTARTED, b""))

    def _close(self) -> None:
        self._return_calls()
        self._results.append((0, Kind.LEAVING, b""))
        with self._lock:
            self._out.send(self._pop_results())
            self._client.close(REPORT_LINGER_S)

    def _watch_calls(self) -> None:
        """Thread: during a long call, return the calls behind it, send results and keep the connection alive.

        Without this thread, calls would wait behind a long call while other workers are idle.
        """
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
                with self._limits_lifted():
                    self._return_calls()
                    self._exchange()
                    if self._calls:  # received by that exchange
                        self._return_calls()
                        self._exchange()
                time.sleep(LONG_CALL_INTERVAL_S)

    def _after_fork(self) -> None:
        """In a child forked by a call: stop being a worker. The thread that may hold a lock does not exist here."""
        self._credential.drop_secret()
        self._record = None  # The memory is shared with the worker, whose unsent results must stay intact.
        self._lock = threading.RLock()
        if self._limits is not None:
            self._limits.reset_after_fork()


def resident() -> int:
    """Return the resident memory of this process in bytes."""
    try:
        with open("/proc/self/statm", "rb", buffering=0) as file:  # noqa: PTH123 - faster, and called after each call
            return int(file.read().split()[1]) * resource.getpagesize()
    except OSError:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
