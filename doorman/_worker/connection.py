"""Line: the worker's connection to its manager: prove, hear the go, tell what the task says, report how it ended."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable
from typing import Any, Final

from doorman import identity
from doorman._worker.outcome import Outcome, label, returned
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.journal.outcome_files import write_outcome
from doorman.progress import Progress, ProgressReporter, signed
from remit import Client, Event, Location, Server
from remit._internal import has_room, on_server_restart
from remit.errors import LinkClosed, RemitError

__all__ = ["CHALLENGE_LABEL", "READOPTION_LABEL", "REPORT_LINGER_S", "ManagerConnection", "ReadoptionClient"]


CHALLENGE_LABEL: Final = b"doorman.challenge"
"""What a challenge is signed with, so that it is taken for nothing else."""
READOPTION_LABEL: Final = b"doorman.again"
"""The same for its answer."""


class ReadoptionClient:
    """Says hello to each new manager, and proves anew that it is what it says."""

    def __init__(self, client: Client, credential: Credential) -> None:
        self._client = client
        self._credential = credential
        self._started = False
        on_server_restart(client, self._on_restarted)
        client.add_listener("doorman.challenge", self._on_challenge)
        client.add_listener("doorman.die", self._on_die)

    def start(self) -> None:
        """The task's own code begins: from now on a thread sees to it that a new manager is noticed."""
        self._started = True
        self._client.start()

    def _on_restarted(self) -> None:
        """Control: the server is another one."""
        if self._started:
            self._emit("doorman.hello", identity.hello(self._credential))

    def _on_challenge(self, attempt: str, nonce: bytes, signature: bytes) -> None:
        """Listener: prove it anew, if it is the own manager who asks."""
        if attempt == self._credential.attempt and self._credential.check(CHALLENGE_LABEL + nonce, signature):
            hello = identity.hello(self._credential)
            said = READOPTION_LABEL + nonce + hello["proof"].encode()
            self._emit("doorman.again", hello, self._credential.sign(said))

    def _emit(self, name: str, *words: Any) -> None:
        with contextlib.suppress(LinkClosed):  # It is leaving: all that it had to tell is told.
            self._client.emit(name, *words)

    def _on_die(self, attempt: str, signature: bytes) -> None:
        """Listener: the new manager does not want this attempt any more."""
        known = attempt == self._credential.attempt and self._credential.check(b"die", signature)
        if known and self._started:
            signal.raise_signal(signal.SIGTERM)


GO_TIMEOUT_S: Final = 30.0
"""Seconds after which a child that was not told to go ends without having run anything."""
HELLO_INTERVAL_S: Final = 2.0
"""Seconds after which an unanswered hello is said again."""
REPORT_LINGER_S: Final = 60.0
"""Seconds within which the result must have reached the manager."""
CHUNK: Final = 256 * 1024
"""Bytes of a result in one event: below what any transport carries."""
DETACHED_CLOSE_TIMEOUT_S: Final = 1.0
"""Seconds that a detached process's line takes to close beyond that."""


class ManagerConnection:
    """The worker's connection to its manager."""

    def __init__(self, location: Location, credential: Credential) -> None:
        self._credential = credential
        self._reply: str | None = None
        self._owner = os.getpid()
        self._record: str | None = None
        self._readoption: ReadoptionClient | None = None
        self._reporter: ProgressReporter | None = None
        self._reports = 0
        self._client = Client(location, threaded=False, linger=REPORT_LINGER_S)
        self._client.add_listener("doorman.go", self._on_reply, pass_event=True)
        self._client.add_listener("doorman.die", self._on_reply, pass_event=True)

    def enable_readoption(self, record: str | None) -> None:
        """Outlive the manager, and be found by the next one; what it would have to be told is left at ``record``."""
        self._record = record
        self._readoption = ReadoptionClient(self._client, self._credential)

    def prove(self) -> bool:
        """Say hello until answered; True if told to go."""
        deadline = time.monotonic() + GO_TIMEOUT_S
        hello = identity.hello(self._credential)
        while self._reply is None and (left := deadline - time.monotonic()) > 0:
            self._client.emit("doorman.hello", hello)
            again = time.monotonic() + min(HELLO_INTERVAL_S, left)
            while self._reply is None and (left := again - time.monotonic()) > 0:
                self._client.tick(left)
        return self._reply == "go"

    def start_readoption(self) -> None:
        """The task's own code begins."""
        if self._readoption is not None:
            self._readoption.start()

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event of the task's own; from the first on a thread sees that they leave while the task computes."""
        if os.getpid() == self._owner:
            self._client.start()
        self._client.emit(name, *args, **kwargs)

    def add_listener(self, name: str, listener: Callable[..., Any]) -> None:
        """Hear what the manager emits to this task, in a thread."""
        if os.getpid() == self._owner:
            self._client.add_listener(name, listener)
            self._client.start()

    def report_progress(self, progress: Progress) -> None:
        """Tell how far the task has come, or let it wait for what is newer."""
        if os.getpid() != self._owner:
            raise NotInTask("a fork of the task's process has no progress of its own: report from the task itself")
        if self._reporter is None:
            self._reporter = ProgressReporter(self._send_progress)
        self._reporter.report(progress)

    def _send_progress(self, progress: Progress) -> None:
        if not has_room(self._client):
            return  # Nobody hears it now, and the task must not wait for that.
        self._reports += 1
        self.emit("doorman.progress", signed(self._credential, self._reports, progress), {})

    def report_outcome(self, outcome: Outcome) -> None:
        """Send the outcome, in signed parts, behind the last progress."""
        if self._record is not None:
            try:
                write_outcome(self._record, outcome, self._credential)
            except OSError as error:
                print(f"doorman: the result is left nowhere: {error}", file=sys.stderr)  # noqa: T201
        if self._reporter is not None:
            self._reporter.flush()
        data = outcome.encode()
        parts = max(1, -(-len(data) // CHUNK))
        for number in range(parts):
            part = data[number * CHUNK : (number + 1) * CHUNK]
            signature = self._credential.sign(label(number, parts) + part)
            self._client.emit("doorman.result", self._credential.attempt, number, parts, part, signature)

    def close(self, linger: float | None = None) -> None:
        """Wait until the manager has confirmed everything, then end; what could not be told is told on stderr.

        ``linger`` is how many seconds it waits at the most; default: `REPORT_LINGER`.
        """
        linger = REPORT_LINGER_S if linger is None else linger
        try:
            if self._readoption is not None:
                self._client.flush(linger)  # Not closed meanwhile: a new manager may have questions.
            self._client.close(min(linger, DETACHED_CLOSE_TIMEOUT_S) if self._readoption is not None else linger)
        except RemitError as lost:
            if linger:
                print(f"doorman: the manager was not told: {lost}", file=sys.stderr)  # noqa: T201

    def rehearse(self, server: Server) -> None:
        """Say hello to a server in this very process, hear its answer, and report; all is confirmed then."""
        self._client.emit("doorman.hello", identity.hello(self._credential))
        self._exchange(server)
        self.report_outcome(returned(None))
        self._exchange(server)

    def _exchange(self, server: Server) -> None:
        for _ in range(3):  # A frame goes, its answer comes, and is acknowledged.
            self._client.tick()
            server.tick()

    def _on_reply(self, event: Event) -> None:
        """Listener: the manager's word, if it is the manager's."""
        attempt, signature = event.args
        word = event.name.removeprefix("doorman.")
        if attempt == self._credential.attempt and self._credential.check(word.encode(), signature):
            self._reply = word
