"""Connection of a worker process to its manager: proof of identity, receipt of "go", progress and outcome."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import Any, Final

from doorman import identity
from doorman._worker.outcome import TaskOutcome, returned
from doorman._worker.signed_channel import PROGRESS, RESULT, TASK_REPORTS, SignedSender
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.launcher.outcome_files import write_outcome
from doorman.progress import Progress, ProgressReporter, encode_progress
from remit import Client, Event, Location, Server
from remit._internal import has_room, on_server_restart
from remit.errors import LinkClosed, RemitError

CHALLENGE_LABEL: Final = b"doorman.challenge"
"""Part of the signed bytes of each challenge, so that its signature is valid for no other message."""
READOPTION_LABEL: Final = b"doorman.again"
"""Part of the signed bytes of each answer to a challenge, for the same reason."""

GO_TIMEOUT_S: Final = 30.0
"""Time after which a worker without a "go" exits; no user code has run."""
HELLO_INTERVAL_S: Final = 2.0
"""Time after which an unanswered hello is sent again."""
REPORT_LINGER_S: Final = 60.0
"""Time within which the manager must have acknowledged the outcome."""
DETACHED_CLOSE_TIMEOUT_S: Final = 1.0
"""Time for closing the connection of a detached process after its flush."""


class ReadoptionClient:
    """Sends a hello to a manager that adopts this detached process, and proves the identity again."""

    def __init__(self, client: Client, credential: Credential) -> None:
        self._client = client
        self._credential = credential
        self._started = False
        on_server_restart(client, self._on_restarted)
        client.add_listener("doorman.challenge", self._on_challenge)
        client.add_listener("doorman.die", self._on_die)

    def start(self) -> None:
        """Start the client's thread, which connects to a new manager while the task's code runs."""
        self._started = True
        self._client.start()

    def _on_restarted(self) -> None:
        """Send a hello after a restart of the server, which belongs to another manager."""
        if self._started:
            self._emit("doorman.hello", identity.hello(self._credential))

    def _on_challenge(self, attempt: str, nonce: bytes, signature: bytes) -> None:
        """Listener: answer a challenge that is signed with the attempt's secret."""
        if attempt == self._credential.attempt and self._credential.check(CHALLENGE_LABEL + nonce, signature):
            hello = identity.hello(self._credential)
            signed = READOPTION_LABEL + nonce + hello["proof"].encode()
            self._emit("doorman.again", hello, self._credential.sign(signed))

    def _emit(self, name: str, *args: Any) -> None:
        with contextlib.suppress(LinkClosed):  # The process is about to exit and has reported its outcome.
            self._client.emit(name, *args)

    def _on_die(self, attempt: str, signature: bytes) -> None:
        """Listener: end by SIGTERM, because the new manager does not adopt this attempt."""
        known = attempt == self._credential.attempt and self._credential.check(b"die", signature)
        if known and self._started:
            signal.raise_signal(signal.SIGTERM)


class ManagerConnection:
    """The connection of one worker process to its manager. A fork of the process must not use it."""

    def __init__(self, location: Location, credential: Credential) -> None:
        self._credential = credential
        self._reply: str | None = None
        self._owner = os.getpid()
        self._record: str | None = None
        self._readoption: ReadoptionClient | None = None
        self._reporter: ProgressReporter | None = None
        self._reports = SignedSender(credential, TASK_REPORTS, self._emit_report)
        # Held while a report is signed and emitted: any thread reports progress, and serial numbers must stay in order.
        self._report_lock = threading.Lock()
        self._client = Client(location, threaded=False, linger=REPORT_LINGER_S)
        self._client.add_listener("doorman.go", self._on_reply, pass_event=True)
        self._client.add_listener("doorman.die", self._on_reply, pass_event=True)

    def enable_readoption(self, record: str | None) -> None:
        """Allow a later manager to adopt this process. The outcome is also written to the file ``record``, if given."""
        self._record = record
        self._readoption = ReadoptionClient(self._client, self._credential)

    def prove(self) -> bool:
        """Send hello until it is answered; return True if the answer is "go"."""
        deadline = time.monotonic() + GO_TIMEOUT_S
        hello = identity.hello(self._credential)
        while self._reply is None and (left := deadline - time.monotonic()) > 0:
            self._client.emit("doorman.hello", hello)
            again = time.monotonic() + min(HELLO_INTERVAL_S, left)
            while self._reply is None and (left := again - time.monotonic()) > 0:
                # In this thread: most children need no other thread, which saves memory and time.
                self._client.tick(left)
        return self._reply == "go"

    def start_readoption(self) -> None:
        """Begin to watch for a new manager. Called immediately before the task's code."""
        if self._readoption is not None:
            self._readoption.start()

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event of the task. The first one starts the client's thread, which sends while the task computes."""
        if os.getpid() == self._owner:
            self._client.start()
        self._client.emit(name, *args, **kwargs)

    def add_listener(self, name: str, listener: Callable[..., Any]) -> None:
        """Call ``listener`` in a thread for each event of this name that the manager emits to this task."""
        if os.getpid() == self._owner:
            self._client.add_listener(name, listener)
            self._client.start()

    def report_progress(self, progress: Progress) -> None:
        """Send the task's progress, at most one report per REPORT_INTERVAL_S. Raises NotInTask in a fork."""
        if os.getpid() != self._owner:
            raise NotInTask("a fork of the task's process cannot report progress: report it from the task's process")
        if self._reporter is None:
            self._reporter = ProgressReporter(self._send_progress)
        self._reporter.report(progress)

    def report_outcome(self, outcome: TaskOutcome) -> None:
        """Send the outcome, after the last progress. Of a detached process, also write it to its file."""
        data = outcome.encode()
        if self._record is not None:
            try:
                write_outcome(self._record, data, self._credential)
            except OSError as error:
                print(f"doorman: cannot write the result to a file: {error}", file=sys.stderr)  # noqa: T201
        if self._reporter is not None:
            self._reporter.flush()
        with self._report_lock:
            self._reports.send([(0, RESULT, data)])

    def close(self, linger: float | None = None) -> None:
        """Wait until the manager has acknowledged everything, then close; report a failure on standard error.

        linger -- seconds to wait at most; default: REPORT_LINGER_S
        """
        linger = REPORT_LINGER_S if linger is None else linger
        try:
            if self._readoption is not None:
                self._client.flush(linger)  # Not only close(): flush() still answers a new manager's challenge.
            self._client.close(min(linger, DETACHED_CLOSE_TIMEOUT_S) if self._readoption is not None else linger)
        except RemitError as lost:
            if linger:
                print(f"doorman: the manager did not receive everything: {lost}", file=sys.stderr)  # noqa: T201

    def rehearse(self, server: Server) -> None:
        """Exchange hello, "go" and a result with a server in this process, until all are acknowledged."""
        self._client.emit("doorman.hello", identity.hello(self._credential))
        self._exchange(server)
        self.report_outcome(returned(None))
        self._exchange(server)

    def _exchange(self, server: Server) -> None:
        for _ in range(3):  # For a frame, its answer, and the acknowledgement of the answer.
            self._client.tick()
            server.tick()

    def _send_progress(self, progress: Progress) -> None:
        # A full queue would block the task in `emit`, for a report that is soon out of date.
        if has_room(self._client):
            self._client.start()
            with self._report_lock:
                self._reports.send([(0, PROGRESS, encode_progress(progress))])

    def _emit_report(self, serial: int, data: bytes, signature: bytes) -> None:
        self._client.emit("doorman.report", self._credential.attempt, serial, data, signature)

    def _on_reply(self, event: Event) -> None:
        """Listener: accept "go" or "die", if it is signed with the attempt's secret."""
        attempt, signature = event.args
        word = event.name.removeprefix("doorman.")
        if attempt == self._credential.attempt and self._credential.check(word.encode(), signature):
            self._reply = word
