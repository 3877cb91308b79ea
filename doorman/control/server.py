"""Control: what lets `doorman ps`, `stop` and `top` find a manager, ask it, and have it stop a task of its own."""

from __future__ import annotations

import hashlib
import hmac
import itertools
import os
import secrets
import shlex
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Final, Self

import msgspec

from doorman.control.registry import Registration
from doorman.control.views import ManagerView, TaskView
from doorman.errors import ControlRefused
from doorman.load import Reading, process_reader

if TYPE_CHECKING:
    from doorman.manager import ProcessManager
    from doorman.progress import Progress
    from doorman.task import Task
    from remit import Event

__all__ = ["CHALLENGE", "END", "LOOK", "STOP", "Control", "proof"]


CHALLENGE: Final = "doorman.control.challenge"
LOOK: Final = "doorman.control.look"
STOP: Final = "doorman.control.stop"
END: Final = "doorman.control.end"
KEY_BYTES: Final = 32
CHALLENGES: Final = 256
"""Challenges that may be open at once; the oldest is forgotten first."""
MOST: Final = 400
"""Tasks that one answer tells of: below what any transport carries in a frame."""
APART: Final = 0.5
"""Seconds between two readings of a process from which its use of the processor is told."""


class Control:
    """Answers those who ask a manager what it does, in the manager's own `tick`. For use as a context manager.

    ``name`` is how they name it; default: the kind and the number of its process. Who may ask: this user, or root,
    where the kernel attests who that is (unix:); on other transports whoever proves that he can read the manager's
    entry in the private folder of this user. ``on_end`` is called when the manager as a whole is to end; default: its
    `stop`. ``progress`` is asked for a few words on how far it is. Raises NameTaken, ValueError, BadLocation.
    """

    def __init__(
        self,
        manager: ProcessManager,
        *,
        name: str | None = None,
        kind: str = "manager",
        on_end: Callable[[], object] | None = None,
        progress: Callable[[], str] | None = None,
    ) -> None:
        self._manager = manager
        self._on_end = on_end or manager.stop
        self._progress = progress
        self._key = secrets.token_bytes(KEY_BYTES)
        self._challenges: OrderedDict[str, None] = OrderedDict()
        self._usage = _Usage()
        name = name or f"{kind}-{os.getpid()}-{next(_numbers)}"
        self._registration = Registration(name, manager.server.location, kind=kind, key=self._key)
        self._listeners = {CHALLENGE: self._challenge, LOOK: self._look, STOP: self._stop, END: self._end}
        for verb, listener in self._listeners.items():
            manager.server.add_listener(verb, listener, pass_event=True)

    @property
    def name(self) -> str:
        """How those who ask name the manager."""
        return self._registration.entry.name

    def close(self) -> None:
        """Answer nobody any more, and be found no more. May be called twice."""
        self._registration.close()
        for verb, listener in self._listeners.items():
            self._manager.server.remove_listener(verb, listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- listeners: what they return answers the request ---------------------------------------------------------

    def _challenge(self, event: Event) -> str:
        """Give a number that a proof holds for, once. As text: some codecs have no bytes."""
        challenge = secrets.token_hex(16)
        self._challenges[challenge] = None
        if len(self._challenges) > CHALLENGES:
            self._challenges.popitem(last=False)
        return challenge

    def _look(self, event: Event) -> dict[str, Any]:
        self._admit(LOOK, event)
        entry, manager = self._registration.entry, self._manager
        running, waiting = manager.running, manager.waiting
        shown = (*running, *waiting)[:MOST]
        view = ManagerView(
            name=entry.name,
            kind=entry.kind,
            process=entry.process,
            tasks=self._views(shown),
            running=len(running),
            waiting=len(waiting),
            left_off=len(running) + len(waiting) - len(shown),
            progress="" if self._progress is None else self._progress(),
        )
        return dict(msgspec.to_builtins(view))

    def _stop(self, event: Event) -> str:
        """Stop one task, if it is still the very attempt that was looked at; say what was done."""
        task_id, attempt = self._admit(STOP, event)
        for task in (*self._manager.running, *self._manager.waiting):
            if task.id == task_id:
                if attempt is not None and _attempt(task) != attempt:
                    return "changed"
                waits = task in self._manager.waiting
                return ("dropped" if waits else "told") if self._manager.cancel(task) else "ended"
        return "ended"

    def _end(self, event: Event) -> None:
        self._admit(END, event)
        self._on_end()

    # -- who may ask -------------------------------------------------------------------------------------------

    def _admit(self, verb: str, event: Event) -> tuple[Any, ...]:
        """Return the arguments of who may ask. Raises ControlRefused."""
        challenge, given, *arguments = event.args
        credentials = event.sender.credentials if event.sender is not None else None
        if credentials is not None:
            if credentials.uid not in (os.geteuid(), 0):
                raise ControlRefused(
                    f"this manager belongs to user {os.geteuid()}, and user {credentials.uid} asks: ask as that user"
                )
        elif challenge not in self._challenges or not hmac.compare_digest(
            proof(self._key, challenge, verb, arguments), given
        ):
            raise ControlRefused(
                "this manager's transport does not say who asks: ask on its own host, as its user, whose private "
                "folder holds its key"
            )
        self._challenges.pop(challenge, None)
        return tuple(arguments)

    # -- what is told ------------------------------------------------------------------------------------------

    def _views(self, tasks: Iterable[Task]) -> tuple[TaskView, ...]:
        return tuple(self._view(task) for task in tasks)

    def _view(self, task: Task) -> TaskView:
        cpu, memory = self._usage.of(task)
        return TaskView(
            id=task.id,
            name=task.name,
            state=str(task.state),
            attempt=task.attempt,
            identity=task.identity,
            cpu=cpu,
            memory=memory,
            age=task.duration,
            restarts=max(0, task.attempt - 1),
            progress=_told(task.progress),
            command=shlex.join(task.argv) if task.argv else task.handler,
            why=self._manager.why(task),
        )


class _Usage:
    """What processes cost, by what they had used when somebody asked last."""

    def __init__(self) -> None:
        self._read = process_reader()
        self._before: OrderedDict[str, tuple[float, Reading, float | None]] = OrderedDict()

    def of(self, task: Task) -> tuple[float | None, int | None]:
        """Return per cent of one core, and bytes; None where there is no process to ask for."""
        identity = task.identity
        reading = None if identity is None else self._read(identity.pid)
        # Only the number was used to read it: it holds if the process has it still.
        if identity is None or reading is None or reading.born not in (0, identity.start_time):
            return None, None
        now = time.monotonic()
        at, before, cpu = self._before.get(identity.attempt, (now - (task.duration or 0.0), Reading(0.0, 0), None))
        if now - at >= APART:
            cpu = 100.0 * max(0.0, reading.cpu - before.cpu) / (now - at)
            self._before[identity.attempt] = now, reading, cpu
            if len(self._before) > 2 * MOST:
                self._before.popitem(last=False)
        return cpu, int(reading.memory)


def proof(key: bytes, challenge: str, verb: str, arguments: Iterable[Any]) -> str:
    """Return what proves that who asks this, in answer to that challenge, has the key."""
    data = msgspec.msgpack.encode([challenge, verb, list(arguments)])
    return hashlib.blake2b(data, key=key, digest_size=32, person=b"doorman.control").hexdigest()


_numbers: Final = itertools.count(1)


def _told(progress: Progress | None) -> str:
    """Return how far a task has come in a few words."""
    if progress is None:
        return ""
    total = "" if progress.total is None else f"/{progress.total:g}"
    return " ".join(filter(None, (f"{progress.done:g}{total}", progress.note)))


def _attempt(task: Task) -> str | None:
    return None if task.identity is None else task.identity.attempt
