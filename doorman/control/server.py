"""Server side of the control protocol: a manager describes its tasks to `doorman ps`, `top` and `stop`."""

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
from doorman.errors import ControlRefused
from doorman.identity import Identity
from doorman.load import Reading, read_process

if TYPE_CHECKING:
    from doorman.manager import ProcessManager
    from doorman.progress import Progress
    from doorman.task import Task
    from remit import Event

CHALLENGE: Final = "doorman.control.challenge"
LOOK: Final = "doorman.control.look"
STOP: Final = "doorman.control.stop"
END: Final = "doorman.control.end"
KEY_BYTES: Final = 32
MAX_CHALLENGES: Final = 256  # unused ones; the oldest is dropped first
MAX_TASKS: Final = 400  # one reply must fit into a frame of any transport
CPU_INTERVAL_S: Final = 0.5  # between two readings of a process: /proc counts in ticks of 10 ms
_numbers: Final = itertools.count(1)


class TaskView(msgspec.Struct, frozen=True, kw_only=True):
    """One task at the time of the query."""

    id: str
    name: str
    state: str
    attempt: int
    identity: Identity | None = None
    """The proven process of the task; None before the proof."""
    cpu: float | None = None
    """Load since the last query, or else since the start, in per cent of one core, including descendants."""
    memory: int | None = None
    """Resident bytes, including descendants."""
    age: float | None = None
    """Seconds since its user code started."""
    restarts: int = 0
    progress: str = ""
    command: str = ""
    why: str | None = None


class ManagerView(msgspec.Struct, frozen=True, kw_only=True):
    """One manager and its tasks: the running ones first, then the waiting ones."""

    name: str
    kind: str
    process: Identity
    tasks: tuple[TaskView, ...] = ()
    running: int = 0
    waiting: int = 0
    left_off: int = 0
    """Number of further tasks, which are not in `tasks`."""
    progress: str = ""


class Control:
    """Answers queries about a manager within the manager's `tick`, until `close` or the end of a ``with`` block.

    ``name`` names the manager in `doorman ps`; default: kind, pid and a number. ``on_end`` is called by `doorman stop
    NAME`; default: `manager.stop`. ``progress`` returns a short text. Raises NameTaken, ValueError, BadLocation.
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
        key = secrets.token_bytes(KEY_BYTES)
        self._auth = RequestAuth(key)
        self._usage = _Usage()
        name = name or f"{kind}-{os.getpid()}-{next(_numbers)}"
        self._registration = Registration(name, manager.server.location, kind=kind, key=key)
        self._listeners: dict[str, Callable[[Event], object]] = {
            CHALLENGE: lambda event: self._auth.new_challenge(),
            LOOK: self._on_look,
            STOP: self._on_stop,
            END: self._on_end_request,
        }
        for verb, listener in self._listeners.items():
            manager.server.add_listener(verb, listener, pass_event=True)

    @property
    def name(self) -> str:
        """The name of the manager in `doorman ps`."""
        return self._registration.entry.name

    def close(self) -> None:
        """Stop answering and remove the registry entry. May be called twice."""
        self._registration.close()
        for verb, listener in self._listeners.items():
            self._manager.server.remove_listener(verb, listener)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _on_look(self, event: Event) -> dict[str, Any]:
        self._auth.check(LOOK, event)
        entry, manager = self._registration.entry, self._manager
        # Running tasks first: if the reply is cut, waiting ones are missing.
        running, waiting = manager.running, manager.waiting
        shown = (*running, *waiting)[:MAX_TASKS]
        view = ManagerView(
            name=entry.name,
            kind=entry.kind,
            process=entry.process,
            tasks=tuple(map(self._view, shown)),
            running=len(running),
            waiting=len(waiting),
            left_off=len(running) + len(waiting) - len(shown),
            progress="" if self._progress is None else self._progress(),
        )
        return dict(msgspec.to_builtins(view))

    def _on_stop(self, event: Event) -> str:
        task_id, attempt = self._auth.check(STOP, event)
        for task in (*self._manager.running, *self._manager.waiting):
            if task.id == task_id:
                # The task may have been restarted since the client looked at it.
                if attempt is not None and (task.identity is None or task.identity.attempt != attempt):
                    return "replaced"
                result = "cancelled" if task in self._manager.waiting else "stopping"
                return result if self._manager.cancel(task) else "finished"
        return "finished"

    def _on_end_request(self, event: Event) -> None:
        self._auth.check(END, event)
        self._on_end()

    def _view(self, task: Task) -> TaskView:
        cpu, memory = self._usage.measure(task)
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
            progress=_progress_text(task.progress),
            command=shlex.join(task.argv) if task.argv else task.handler,
            why=self._manager.why(task),
        )


class RequestAuth:
    """Authenticates requests by the user that the kernel attests, or else by a MAC over a one-time challenge.

    This user and root have access. The key of the MAC is in the registry entry, which only this user can read.
    """

    def __init__(self, key: bytes) -> None:
        self._key = key
        self._challenges: OrderedDict[str, None] = OrderedDict()

    def new_challenge(self) -> str:
        """Return a challenge that is valid for one request."""
        challenge = secrets.token_hex(16)  # text: JSON has no bytes
        self._challenges[challenge] = None
        if len(self._challenges) > MAX_CHALLENGES:
            self._challenges.popitem(last=False)
        return challenge

    def check(self, verb: str, event: Event) -> tuple[Any, ...]:
        """Return the arguments of an authentic request. Raises ControlRefused."""
        challenge, signature, *arguments = event.args
        credentials = event.sender.credentials if event.sender is not None else None
        if credentials is not None:
            if credentials.uid not in (os.geteuid(), 0):
                raise ControlRefused(
                    f"this manager belongs to user {os.geteuid()}, the request comes from user {credentials.uid}: "
                    "run the command as the manager's user"
                )
        elif challenge not in self._challenges or not hmac.compare_digest(
            sign_request(self._key, challenge, verb, arguments), signature
        ):
            raise ControlRefused(
                "the request has no valid signature, and this transport does not attest the user: run the command on "
                "the manager's host and as its user, whose private folder contains the key"
            )
        # Each challenge is valid once: a recorded request cannot be replayed.
        self._challenges.pop(challenge, None)
        return tuple(arguments)


def sign_request(key: bytes, challenge: str, verb: str, arguments: Iterable[Any]) -> str:
    """Return the MAC of a request under the manager's key."""
    data = msgspec.msgpack.encode([challenge, verb, list(arguments)])
    return hashlib.blake2b(data, key=key, digest_size=32, person=b"doorman.control").hexdigest()


class _Usage:
    """CPU and memory use of processes; the CPU load is the difference to the reading before."""

    def __init__(self) -> None:
        self._read = read_process
        self._before: OrderedDict[str, tuple[float, Reading, float | None]] = OrderedDict()

    def measure(self, task: Task) -> tuple[float | None, int | None]:
        """Return per cent of one core, and resident bytes; None without a process."""
        identity = task.identity
        reading = None if identity is None else self._read(identity.pid)
        # /proc is read by pid, which another process may have by now; the start time detects that.
        if identity is None or reading is None or reading.born not in (0, identity.start_time):
            return None, None
        now = time.monotonic()
        at, before, cpu = self._before.get(identity.attempt, (now - (task.duration or 0.0), Reading(0.0, 0), None))
        if now - at >= CPU_INTERVAL_S:
            cpu = 100.0 * max(0.0, reading.cpu - before.cpu) / (now - at)
            # Keyed by attempt, not by pid: a restarted task begins with a new history.
            self._before[identity.attempt] = now, reading, cpu
            if len(self._before) > 2 * MAX_TASKS:
                self._before.popitem(last=False)
        return cpu, int(reading.memory)


def _progress_text(progress: Progress | None) -> str:
    if progress is None:
        return ""
    total = "" if progress.total is None else f"/{progress.total:g}"
    return " ".join(filter(None, (f"{progress.done:g}{total}", progress.note)))
