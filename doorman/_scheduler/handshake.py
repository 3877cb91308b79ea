"""Reception: what the processes say to their manager, believed only from those that prove who they are."""

from __future__ import annotations

import contextlib
import functools
from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Any, Final

import msgspec

from doorman._worker.connection import CHALLENGE_LABEL, READOPTION_LABEL
from doorman._worker.outcome import Outcome
from doorman.errors import IdentityRefused
from doorman.identity import Credential, Identity, Refusal, verify
from doorman.launcher import Reach
from doorman.progress import read
from doorman.states import State
from remit.errors import EmitError

if TYPE_CHECKING:
    from doorman._scheduler.attempt import Attempt
    from doorman._scheduler.supervisor import Running
    from doorman.journal.recorder import Recorder
    from doorman.task import OnProgress
    from remit import Event, Server

__all__ = ["HandshakeServer", "ReadoptionChallenge"]


class ReadoptionChallenge:
    """The manager's side. ``proven`` is called before a process is told to go on that had to prove itself anew."""

    def __init__(
        self,
        server: Server,
        running: Running,
        refused: Counter[str],
        proven: Callable[[Attempt, Identity], None],
    ) -> None:
        self._server = server
        self._running = running
        self._refused = refused
        self._proven = proven
        server.add_listener("doorman.again", self._again, pass_event=True)

    def close(self) -> None:
        """Listen no more, on a server that may go on."""
        self._server.remove_listener("doorman.again", self._again)

    def challenge(self, attempt: Attempt, sender: Any) -> None:
        """Ask whoever said hello for an attempt that was begun by the manager before this one to prove it anew."""
        nonce = _nonce(attempt, sender)
        _say(sender, "doorman.challenge", attempt.id, nonce, attempt.credential.sign(CHALLENGE_LABEL + nonce))

    def _again(self, event: Event) -> None:
        """Listener: a process answers a challenge."""
        try:
            hello, signature = event.args
            named = hello.get("attempt")
            attempt = self._running.named(named)
            if attempt is None or not attempt.salt:
                raise IdentityRefused(Refusal.WRONG_ATTEMPT, "nobody was challenged for it")
            self._believe(attempt, hello, signature, event.sender)
        except IdentityRefused as error:
            self._refused[error.reason.value] += 1
        except (ValueError, TypeError, AttributeError):  # Anybody may have sent anything.
            self._refused[Refusal.MALFORMED.value] += 1

    def _believe(self, attempt: Attempt, hello: Any, signature: Any, sender: Any) -> None:
        """Go on with the process, or raise IdentityRefused; then nothing changes for the attempt."""
        credential = attempt.credential
        said = READOPTION_LABEL + _nonce(attempt, sender) + str(hello.get("proof")).encode()
        if not isinstance(signature, bytes) or not credential.check(said, signature):
            raise IdentityRefused(Refusal.REPLAYED, "an old hello, or somebody else's")
        known = verify(hello, credential, attempt.launched, peer_credentials=sender.credentials)
        if attempt.sender is not None and attempt.sender.id != sender.id:
            raise IdentityRefused(Refusal.REPLAYED, "somebody else says what the process has said")
        if attempt.stopping is None and attempt.task.state is State.PROVING:
            attempt.launched = known.open()
            self._proven(attempt, known)
            self._running.proven(attempt, known)
        attempt.sender = sender
        word = "go" if attempt.stopping is None else "die"
        _say(sender, f"doorman.{word}", attempt.id, credential.sign(word.encode()))


def _nonce(attempt: Attempt, sender: Any) -> bytes:
    """Return what one sender has to sign: nobody else could use the answer."""
    return attempt.credential.sign(CHALLENGE_LABEL + attempt.salt + str(sender.id).encode())


def _say(sender: Any, name: str, *words: Any) -> None:
    with contextlib.suppress(EmitError):  # Nobody is there any more to be told.
        sender.emit(name, *words)


_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_read_report: Final = functools.partial(
    msgspec.convert, type=tuple[str, _Number, _Number, bytes, bytes], builtin_types=(bytes,)
)
"""Reads what anybody may have sent as ``attempt, number, parts, part, signature``."""


class HandshakeServer:
    """Listens for hellos, progress and results.

    ``concluded`` is called with an attempt whose result came after its exit, ``on_progress`` with each progress.
    ``refused`` counts what is not believed, by reason.
    """

    def __init__(
        self,
        server: Server,
        running: Running,
        concluded: Callable[[Attempt], None],
        recorder: Recorder,
        refused: Counter[str],
        on_progress: OnProgress | None = None,
    ) -> None:
        self._running = running
        self._concluded = concluded
        self._recorder = recorder
        self._on_progress = on_progress
        self._refused = refused
        self._adoption = ReadoptionChallenge(server, running, self._refused, recorder.proven)
        self._server = server
        server.add_listener("doorman.hello", self._greeted, pass_event=True)
        server.add_listener("doorman.progress", self._progressed, pass_event=True)
        server.add_listener("doorman.result", self._reported, pass_event=True)

    def close(self) -> None:
        """Listen no more, on a server that may go on."""
        self._adoption.close()
        self._server.remove_listener("doorman.hello", self._greeted)
        self._server.remove_listener("doorman.progress", self._progressed)
        self._server.remove_listener("doorman.result", self._reported)

    def admit_early(self, attempt: Attempt) -> None:
        """Hear the hellos that came before the launcher's word of the process."""
        while attempt.hellos:
            self._prove(attempt, *attempt.hellos.popleft())

    def _greeted(self, event: Event) -> None:
        """Listener: a process says that it is an attempt's."""
        hello: Any = event.args[0] if event.args else None
        named = hello.get("attempt") if isinstance(hello, dict) else None
        attempt = self._running.named(named)
        if attempt is None:
            self._come_late(hello, self._running.over(named), event.sender)
        elif attempt.salt:
            self._adoption.challenge(attempt, event.sender)
        elif attempt.launched is None:
            attempt.hellos.append((hello, event.sender))
        else:
            self._prove(attempt, hello, event.sender)

    def _prove(self, attempt: Attempt, hello: dict[str, Any], sender: Any) -> None:
        """Believe a hello and let the task begin, or not: then nothing changes for the attempt."""
        try:
            identity = verify(
                hello,
                attempt.credential,
                attempt.launched,
                peer_credentials=sender.credentials,
                descendant=attempt.reach is Reach.BELOW,
                elsewhere=attempt.reach is Reach.ANYWHERE,
            )
            if attempt.sender is not None and attempt.sender.id != sender.id:
                raise IdentityRefused(Refusal.REPLAYED, "somebody else says what the process has said")
            if attempt.stopping is not None:
                _answer(sender, attempt.credential, "die")
                return
            if attempt.task.state is State.PROVING:
                self._recorder.proven(attempt, identity)
                self._running.proven(attempt, identity)
        except IdentityRefused as error:
            self._refused[error.reason.value] += 1
            return
        attempt.sender = sender
        _answer(sender, attempt.credential, "go")

    def _come_late(self, hello: Any, credential: Credential | None, sender: Any) -> None:
        """Tell a process whose attempt is over to die; anybody else gets no answer."""
        if credential is None:
            self._refused["unknown attempt"] += 1
            return
        try:
            verify(hello, credential, None)
        except IdentityRefused as error:
            self._refused[error.reason.value] += 1
            if error.reason is Refusal.LATE:
                _answer(sender, credential, "die")

    def _progressed(self, event: Event) -> None:
        """Listener: a process says how far it has come."""
        attempt = self._proven(event, "progress")
        if attempt is None:
            return
        try:
            _, data, signature = event.args
            number, progress = read(attempt.credential, data, signature)
        except (ValueError, msgspec.MsgspecError):
            self._refused["progress not signed by the attempt's process"] += 1
            return
        if number > attempt.reports:  # Else it was heard before, and again after a restart of the wire.
            attempt.reports = number
            attempt.task._report_progress(progress, self._on_progress)

    def _proven(self, event: Event, what: str) -> Attempt | None:
        """Return the attempt that an event names, if its process has proven itself."""
        attempt = self._running.named(event.args[0]) if event.args else None
        if attempt is None:
            self._refused[f"{what} of an unknown attempt"] += 1
        elif attempt.task.identity is None:
            self._refused[f"{what} of a process that has not proven itself"] += 1
        else:
            return attempt
        return None

    def _reported(self, event: Event) -> None:
        """Listener: a process reports a part of its result."""
        attempt = self._proven(event, "result")
        if attempt is None:
            return
        try:
            _, number, parts, part, signature = _read_report(event.args)
            whole = attempt.parts.add(number, parts, part, signature)
            if whole is not None:
                attempt.outcome = Outcome.decode(whole)
                self._recorder.told(attempt)
        except (ValueError, msgspec.MsgspecError):
            self._refused["result not signed by the attempt's process"] += 1
            return
        if attempt.outcome is not None and attempt.exited is not None:
            self._concluded(attempt)


def _answer(sender: Any, credential: Credential, word: str) -> None:
    """Say ``go`` or ``die``, signed: so that a process obeys its own manager only."""
    with contextlib.suppress(EmitError):  # Nobody is there any more to be told.
        sender.emit(f"doorman.{word}", credential.attempt, credential.sign(word.encode()))
