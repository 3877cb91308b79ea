"""Adoption: how a manager believes a process that the manager before it has detached.

The process says hello again. That could be an old hello that somebody has overheard, so the manager answers with a
challenge, and believes what only the process can sign. The process's side is `doorman.journal.homecoming`.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from doorman.attempts.attempt import Attempt
from doorman.attempts.running import Running
from doorman.errors import IdentityRefused
from doorman.identity import Identity, Refusal, verify
from doorman.journal.homecoming import AGAIN, ASKED
from doorman.states import State
from remit import Event, Server
from remit.errors import EmitError

__all__ = ["Adoption"]


class Adoption:
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
        _say(sender, "doorman.challenge", attempt.id, nonce, attempt.credential.sign(ASKED + nonce))

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
        said = AGAIN + _nonce(attempt, sender) + str(hello.get("proof")).encode()
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
    return attempt.credential.sign(ASKED + attempt.salt + str(sender.id).encode())


def _say(sender: Any, name: str, *words: Any) -> None:
    with contextlib.suppress(EmitError):  # Nobody is there any more to be told.
        sender.emit(name, *words)
