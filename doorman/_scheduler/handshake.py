"""Listeners for the messages of worker processes, which turn verified messages into events of attempts."""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections import Counter, deque
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from doorman._scheduler.lifecycle import HelloReceived, Phase, ProgressReceived, ProofRefused, Proven, ResultReceived
from doorman._worker.connection import CHALLENGE_LABEL, READOPTION_LABEL
from doorman._worker.outcome import TaskOutcome
from doorman._worker.signed_channel import PROGRESS
from doorman.errors import IdentityRefused
from doorman.identity import Credential, Refusal, verify
from doorman.launcher import Reach
from doorman.progress import decode_progress
from remit import Event, Server
from remit.errors import EmitError

if TYPE_CHECKING:
    from doorman._scheduler.attempt import Attempt
    from doorman._scheduler.supervisor import Supervisor

Handler: TypeAlias = Callable[[Event, bool], object]
"""Called with an event and False; after an interrupt within it called again, with True."""


class Handshake:
    """The listeners of one manager. They verify messages; `lifecycle.step` decides.

    An event is handled inside the listener, so that the journal has a result before the server acknowledges it.
    """

    def __init__(self, server: Server) -> None:
        self.refused: Counter[str] = Counter()
        """Number of refused messages, by reason."""
        self._server = server
        self._events: deque[Event] = deque()
        self.handlers: dict[str, dict[Handler, None]] = {
            "doorman.hello": {self._receive_hello: None},
            "doorman.again": {self._receive_challenge_answer: None},
            "doorman.report": {self._receive_report: None},
            "doorman.ready": {},  # Those of crews.
            "doorman.results": {},
        }
        """Called for each event of a name, as a request of the supervisor's queue."""

    def open(self, supervisor: Supervisor) -> None:
        """Add the listeners, for the attempts of a supervisor."""
        self._supervisor = supervisor
        for name in self.handlers:
            # The first one is C code: no interrupt can occur between the removal of an event from its frame and here.
            self._server.add_listener(name, self._events.append, pass_event=True)
            self._server.add_listener(name, self._handle_events, pass_event=True)

    def close(self) -> None:
        """Remove the listeners: the server may be the user's."""
        for name in self.handlers:
            self._server.remove_listener(name, self._events.append)
            self._server.remove_listener(name, self._handle_events)

    def receive(self) -> None:
        """Handle all messages that have arrived; never waits."""
        self._handle_events()  # What an interrupt has left, and below what an exception in the listener has.
        self._server.tick()
        self._handle_events()

    def _handle_events(self, _: Event | None = None) -> None:
        requests, each = self._supervisor.requests, itertools.repeat
        pops = itertools.starmap(self._events.popleft, each((), len(self._events)))
        requests.extend(map(functools.partial, each(self._handle), pops))  # One call of C code, for the same reason.
        requests.run()

    def _handle(self, event: Event, again: bool) -> None:
        for handler in tuple(self.handlers[event.name]):
            handler(event, again)

    def verify(self, attempt: Attempt, hello: dict[str, Any], sender: Any) -> Proven | ProofRefused:
        """Verify a hello by the secret, the launched process and the kernel's peer credentials."""
        own = None
        try:
            identity = verify(
                hello,
                attempt.credential,
                attempt.launched,
                peer_credentials=sender.credentials,
                descendant=attempt.reach is Reach.BELOW,
                elsewhere=attempt.reach is Reach.ANYWHERE,
            )
            behind = attempt.launched is not None and identity.here and identity.pid != attempt.launched.pid
            if behind and attempt.phase is Phase.PROVING:
                own = identity.open()
        except IdentityRefused as error:
            return ProofRefused(error.reason.value)
        return Proven(identity, sender, own=own)

    def challenge(self, attempt: Attempt, sender: Any) -> None:
        """Ask the sender of a hello to sign a nonce: the hello could be a replay."""
        nonce = _nonce(attempt, sender)
        _emit(sender, "doorman.challenge", attempt.id, nonce, attempt.credential.sign(CHALLENGE_LABEL + nonce))

    def reply(self, credential: Credential, word: str, sender: Any) -> None:
        """Send ``go`` or ``die``, signed: a process obeys only its own manager."""
        _emit(sender, f"doorman.{word}", credential.attempt, credential.sign(word.encode()))

    def _receive_hello(self, event: Event, again: bool) -> None:
        hello: Any = event.args[0] if event.args else None
        name = hello.get("attempt") if isinstance(hello, dict) else None
        attempt = self._supervisor.attempt(name)
        if attempt is None:
            self._answer_late(hello, self._supervisor.ended_credential(name), event.sender)
        else:
            self._supervisor.handle(attempt, HelloReceived(hello, event.sender))

    def _answer_late(self, hello: Any, credential: Credential | None, sender: Any) -> None:
        """Reply ``die`` to the process of an attempt that has ended; do not answer any other sender."""
        if credential is None:
            self.refused["unknown attempt"] += 1
            return
        try:
            verify(hello, credential, None)
        except IdentityRefused as error:
            self.refused[error.reason.value] += 1
            if error.reason is Refusal.LATE:
                self.reply(credential, "die", sender)

    def _receive_challenge_answer(self, event: Event, again: bool) -> None:
        try:
            hello, signature = event.args
            attempt = self._supervisor.attempt(hello.get("attempt"))
            if attempt is None or not attempt.adopted:
                raise IdentityRefused(Refusal.WRONG_ATTEMPT, "no process was challenged for it")
            proven = self._answered(attempt, hello, signature, event.sender)
        except IdentityRefused as error:
            self.refused[error.reason.value] += 1
        except (ValueError, TypeError, AttributeError):  # Any peer may have sent anything.
            self.refused[Refusal.MALFORMED.value] += 1
        else:
            self._supervisor.handle(attempt, proven)

    def _answered(self, attempt: Attempt, hello: Any, signature: Any, sender: Any) -> Proven:
        """Verify the answer to a challenge. Raises IdentityRefused."""
        signed = READOPTION_LABEL + _nonce(attempt, sender) + str(hello.get("proof")).encode()
        if not isinstance(signature, bytes) or not attempt.credential.check(signed, signature):
            raise IdentityRefused(Refusal.REPLAYED, "an old hello, or one of another process")
        identity = verify(hello, attempt.credential, attempt.launched, peer_credentials=sender.credentials)
        return Proven(identity, sender, launched=identity.open() if attempt.launched is None else None)

    def _receive_report(self, event: Event, again: bool) -> None:
        attempt = self._supervisor.attempt(event.args[0]) if event.args else None
        if attempt is None or attempt.identity is None:
            why = "an unknown attempt" if attempt is None else "a process that has not proven itself"
            self.refused[f"report of {why}"] += 1
            return
        try:
            _, serial, data, signature = event.args
            reports = attempt.channel.receive(serial, data, signature, again=again)
            received = [
                ProgressReceived(serial, decode_progress(content))
                if kind == PROGRESS
                else ResultReceived(TaskOutcome.decode(content))
                for _, kind, content in reports
            ]
        except (ValueError, msgspec.MsgspecError):
            self.refused["report not signed by the attempt's process"] += 1
            return
        for report in received:
            self._supervisor.handle(attempt, report)


def _nonce(attempt: Attempt, sender: Any) -> bytes:
    """Return the nonce for one sender. The answer is useless to any other."""
    return attempt.credential.sign(CHALLENGE_LABEL + attempt.salt + str(sender.id).encode())


def _emit(sender: Any, name: str, *args: Any) -> None:
    with contextlib.suppress(EmitError):  # The process is gone.
        sender.emit(name, *args)
