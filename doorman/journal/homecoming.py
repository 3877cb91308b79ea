"""Homecoming: a detached process notices that its manager is another one, and proves to it who it is."""

from __future__ import annotations

import contextlib
import signal
from typing import Any, Final

from doorman import identity
from doorman.identity import Credential
from remit import Client
from remit.ends.inbound import RENEWED
from remit.errors import LinkClosed

__all__ = ["AGAIN", "ASKED", "Homecoming"]

ASKED: Final = b"doorman.challenge"
"""What a challenge is signed with, so that it is taken for nothing else."""
AGAIN: Final = b"doorman.again"
"""The same for its answer."""


class Homecoming:
    """Says hello to each new manager, and proves anew that it is what it says."""

    def __init__(self, client: Client, credential: Credential) -> None:
        self._client = client
        self._credential = credential
        self._began = False
        self._renewed = client.controls[RENEWED]
        client.controls[RENEWED] = self._met
        client.add_listener("doorman.challenge", self._challenged)
        client.add_listener("doorman.die", self._told_to_die)

    def begin(self) -> None:
        """The task's own code begins: from now on a thread sees to it that a new manager is noticed."""
        self._began = True
        self._client.start()

    def _met(self, *arguments: Any) -> None:
        """Control: the server is another one."""
        self._renewed(*arguments)
        if self._began:
            self._emit("doorman.hello", identity.hello(self._credential))

    def _challenged(self, attempt: str, nonce: bytes, signature: bytes) -> None:
        """Listener: prove it anew, if it is the own manager who asks."""
        if attempt == self._credential.attempt and self._credential.check(ASKED + nonce, signature):
            hello = identity.hello(self._credential)
            said = AGAIN + nonce + hello["proof"].encode()
            self._emit("doorman.again", hello, self._credential.sign(said))

    def _emit(self, name: str, *words: Any) -> None:
        with contextlib.suppress(LinkClosed):  # It is leaving: all that it had to tell is told.
            self._client.emit(name, *words)

    def _told_to_die(self, attempt: str, signature: bytes) -> None:
        """Listener: the new manager does not want this attempt any more."""
        known = attempt == self._credential.attempt and self._credential.check(b"die", signature)
        if known and self._began:
            signal.raise_signal(signal.SIGTERM)
