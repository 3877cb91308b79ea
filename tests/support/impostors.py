"""Impostors: launchers and workers that misbehave in one way each, for the tests of identity."""

from __future__ import annotations

import os
import pickle
import select
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from doorman import process
from doorman._worker import connection as line
from doorman._worker import main as worker
from doorman._worker.connection import ManagerConnection
from doorman._worker.outcome import returned
from doorman.identity import Credential
from doorman.identity import hello as claims_of
from doorman.launcher import Event, Launcher, Order
from doorman.launcher.zygote import ZygoteLauncher
from remit import Client

__all__ = ["Delayed", "zygote"]

Entry = Callable[[Order], int]


def zygote(kind: Callable[[str], Entry], scheme: str = "unix") -> ZygoteLauncher:
    """Return a launcher whose workers are of one of the kinds below."""
    return ZygoteLauncher(entry=f"impostors:{kind.__name__}:{scheme}")


class Delayed:
    """A launcher that is heard only as far as ``holds`` lets it, and whose orders can be read."""

    def __init__(self, launcher: Launcher) -> None:
        self._launcher = launcher
        self._held: list[Event] = []
        self.orders: dict[str, Order] = {}
        self.holds: Callable[[Event], bool] = lambda event: False
        self.fileno, self.close, self.kill = launcher.fileno, launcher.close, launcher.kill

    def launch(self, order: Order) -> None:
        self.orders[order.attempt] = order
        self._launcher.launch(order)

    def poll(self) -> list[Event]:
        events = [*self._held, *self._launcher.poll()]
        self._held = [event for event in events if self.holds(event)]
        return [event for event in events if event not in self._held]

    @property
    def held(self) -> list[Event]:
        """What it has to say and may not; looks for more."""
        self._held += self._launcher.poll()
        return self._held


# -- kinds of workers; each is made once, in the zygote ------------------------------------------------------------


def honest(scheme: str) -> Entry:
    return worker.prepare(scheme)


def shuffled(scheme: str) -> Entry:
    """Says hello up to a tenth of a second late, so that hellos come in any order."""
    run = worker.prepare(scheme)

    def entry(order: Order) -> int:
        select.select([], [], [], os.urandom(1)[0] / 2560)
        return run(order)

    return entry


def silent(scheme: str) -> Entry:
    """Says no hello at all."""
    worker.prepare(scheme)

    def entry(order: Order) -> int:
        select.select([], [], [])
        return 0

    return entry


def impatient(scheme: str) -> Entry:
    """Waits for a go no longer than half a second."""
    run = worker.prepare(scheme)
    line.GO_TIMEOUT_S, line.HELLO_INTERVAL_S = 0.5, 0.1  # type: ignore[misc]
    return run


def insistent(scheme: str) -> Entry:
    """Says an unanswered hello again twice a second."""
    run = worker.prepare(scheme)
    line.HELLO_INTERVAL_S = 0.5  # type: ignore[misc]
    return run


def curt(scheme: str) -> Entry:
    """Does not wait until its manager has confirmed a result."""
    run = worker.prepare(scheme)
    line.REPORT_LINGER_S = 0.05  # type: ignore[misc]
    return run


def of_old(scheme: str) -> Entry:
    """Runs where processes have no inodes."""
    process.has_pidfd_inodes = lambda: False  # type: ignore[assignment]
    return worker.prepare(scheme)


LOST = 3
lost = 0


def losing(scheme: str) -> Entry:
    """Its first hellos are lost on the way."""
    run, emit = worker.prepare(scheme), Client.emit

    def lossy(self: Client, name: str, /, *args: Any, **kwargs: Any) -> None:
        global lost
        if name == "doorman.hello" and lost < LOST:
            lost += 1
        else:
            emit(self, name, *args, **kwargs)

    Client.emit = lossy  # type: ignore[method-assign]
    line.HELLO_INTERVAL_S = 0.02  # type: ignore[misc]
    return run


def hellos_lost() -> int:
    return lost


def repeating(scheme: str) -> Entry:
    """Says each hello three times, and goes on saying it when it was told to go."""
    run, emit, prove = worker.prepare(scheme), Client.emit, ManagerConnection.prove

    def thrice(self: Client, name: str, /, *args: Any, **kwargs: Any) -> None:
        for _ in range(3 if name == "doorman.hello" else 1):
            emit(self, name, *args, **kwargs)

    def prove_again(self: ManagerConnection) -> bool:
        told = prove(self)
        self._client.emit("doorman.hello", claims_of(self._credential))
        return told

    Client.emit, ManagerConnection.prove = thrice, prove_again  # type: ignore[method-assign]
    return run


class Impostor(ManagerConnection):
    """A connection that sends a single hello on request."""

    def send_hello(self) -> None:
        self._client.emit("doorman.hello", claims_of(self._credential))


def hasty(scheme: str) -> Entry:
    """Says hello and ends, without waiting for an answer."""
    return _with(scheme, Impostor.send_hello, 7)


def unproven(scheme: str) -> Entry:
    """Reports a result, signed, without ever having said hello."""
    return _with(scheme, lambda line: line.report_outcome(returned("made up")), 0)


def _with(scheme: str, act: Callable[[Impostor], None], code: int) -> Entry:
    worker.prepare(scheme)

    def entry(order: Order) -> int:
        work = worker.decode_spec(order.payload)
        own = Impostor(pickle.loads(work.location), Credential(order.attempt, order.secret, task=work.task))
        act(own)
        own.close()
        return code

    return entry


def marked(path: Path) -> str:
    """Be the task's own code that must not run too early; leave a mark."""
    with path.open("a") as file:
        file.write(f"{os.getpid()}\n")
    return "ran"


def credential_in_sight() -> Credential | None:
    """Return the credential as far as it can be reached from the code of a task; None if there is none."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        credential = frame.f_locals.get("credential")
        if isinstance(credential, Credential):
            return credential
        frame = frame.f_back
    return None
