"""Running: the attempts that exist now, what is due for each and when, and how one is made to end."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final

from doorman.attempts.attempt import Attempt
from doorman.identity import Credential, Identity
from doorman.policy.timetable import Timetable
from doorman.process import Process
from doorman.states import State
from doorman.task import Task

__all__ = ["Due", "Running"]

OVER: Final = 1024
"""Attempts that are remembered after their end, so that a process of theirs that turns up late can be told to die."""
TIDY: Final = 1024
"""Dues, beside those of the attempts that exist, beyond which those of attempts that have ended are taken out."""


class Due(Enum):
    """What may come due for an attempt."""

    HELLO = auto()
    """It should have proven itself by now."""
    EXPIRY = auto()
    """Its task's own code has run for as long as it may."""
    LINGERED = auto()
    """Its time was over when it had told its result, and it has had the grace to end by itself."""
    KILL = auto()
    """It was told to end, and the grace is over."""
    LAST_WORDS = auto()
    """Its process has ended, and a result that was under way would be here by now."""


class Running:
    """The attempts of one manager, by id and by task.

    ``grace`` is the seconds between SIGTERM and SIGKILL; ``stopped`` is called before an attempt is told to end.
    """

    def __init__(self, *, grace: float, stopped: Callable[[Attempt, State], object]) -> None:
        self._grace: Final = grace
        self._stopped = stopped
        self._attempts: dict[str, Attempt] = {}
        self._by_task: dict[Task, Attempt] = {}
        self._by_handler: dict[str, dict[Attempt, None]] = {}
        self._over: dict[str, Credential] = {}
        self._dues: Timetable[tuple[Due, str]] = Timetable()
        self.unproven = 0
        """How many are on their way from launch to proof."""

    def __len__(self) -> int:
        return len(self._attempts)

    def __iter__(self) -> Iterator[Attempt]:
        return iter(tuple(self._attempts.values()))

    def __contains__(self, attempt: Attempt) -> bool:
        return attempt.id in self._attempts

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks of the attempts."""
        return tuple(self._by_task)

    def named(self, attempt_id: object) -> Attempt | None:
        """Return the attempt of that id; None if there is none, or if that is no id at all."""
        return self._attempts.get(attempt_id) if isinstance(attempt_id, str) else None

    def over(self, attempt_id: object) -> Credential | None:
        """Return the credential of an attempt that has ended not long ago; no hello under it is believed."""
        return self._over.get(attempt_id) if isinstance(attempt_id, str) else None

    def of(self, task: Task) -> Attempt | None:
        """Return the attempt that is under way for a task."""
        return self._by_task.get(task)

    def siblings(self, task: Task) -> tuple[Attempt, ...]:
        """Return the attempts of other tasks with the same handler."""
        return tuple(attempt for attempt in self._by_handler.get(task.handler, ()) if attempt.task is not task)

    # -- the life of an attempt --------------------------------------------------------------------------------

    def add(self, attempt: Attempt) -> None:
        """Begin: its process was asked for."""
        attempt.task.enter(State.LAUNCHING)
        self._register(attempt)
        self.unproven += 1

    def launched(self, attempt: Attempt, process: Process, patience: float) -> None:
        """Go on: a process is there, and has ``patience`` seconds to prove itself."""
        attempt.launched = process
        if attempt.stopping is not None:
            attempt.signal(signal.SIGKILL)
            return
        attempt.task.enter(State.PROVING)
        self.expect(Due.HELLO, attempt, patience)

    def proven(self, attempt: Attempt, identity: Identity) -> None:
        """Go on: the process is the task's, and its code begins. Raises IdentityRefused if it has ended meanwhile."""
        if attempt.launched is not None and identity.here and identity.pid != attempt.launched.pid:
            attempt.own = identity.open()
        attempt.task.identity = identity
        self.unproven -= 1
        attempt.task.enter(State.RUNNING)
        if attempt.task.expires_in is not None:
            self.expect(Due.EXPIRY, attempt, attempt.task.expires_in)

    def resume(self, attempt: Attempt, identity: Identity, began: float) -> None:
        """Go on with what a manager before this one has proven; ``began`` is when, by the monotonic clock."""
        task = attempt.task
        task.identity = identity
        task.enter(State.RUNNING)
        task.began(began)
        self._register(attempt)
        if task.expires_in is not None:
            self.expect(Due.EXPIRY, attempt, began + task.expires_in - time.monotonic())

    def resume_unproven(self, attempt: Attempt, patience: float) -> None:
        """The same where the kernel cannot tell which process it is: it has ``patience`` seconds to prove itself."""
        self.add(attempt)
        attempt.task.enter(State.PROVING)
        self.expect(Due.HELLO, attempt, patience)

    def _register(self, attempt: Attempt) -> None:
        self._attempts[attempt.id] = self._by_task[attempt.task] = attempt
        self._by_handler.setdefault(attempt.handler, {})[attempt] = None

    def remember(self, credential: Credential) -> None:
        """Believe no hello under this credential any more; a process that says one is told to die."""
        credential.revoke()
        self._over[credential.attempt] = credential
        if len(self._over) > OVER:
            del self._over[next(iter(self._over))]

    def let_go(self, attempt: Attempt) -> None:
        """Leave a detached process to itself: nothing is said to it."""
        self.forget(attempt)
        del self._over[attempt.id]

    def stop(self, attempt: Attempt, ends_as: State) -> None:
        """TERM now, KILL to the whole group after the grace; at once KILL to what has not even proven itself."""
        if attempt.stopping is not None:
            return
        self._stopped(attempt, ends_as)
        attempt.stopping = ends_as
        proven = attempt.task.state is State.RUNNING
        attempt.task.enter(State.STOPPING)
        if proven:
            attempt.terminate()
        else:
            attempt.signal(signal.SIGKILL)
        self.expect(Due.KILL, attempt, self._grace)

    def linger(self, attempt: Attempt) -> None:
        """Let it end by itself, though its time is over: its result is here. It has the grace for that."""
        self.expect(Due.LINGERED, attempt, self._grace)

    def forget(self, attempt: Attempt) -> None:
        """End: let go of its processes; every later hello is late."""
        self.remember(attempt.credential)
        del self._attempts[attempt.id]
        del self._by_task[attempt.task]
        siblings = self._by_handler[attempt.handler]
        del siblings[attempt]
        if not siblings:
            del self._by_handler[attempt.handler]
        if attempt.task.identity is None:
            self.unproven -= 1
        attempt.close()
        if len(self._dues) > TIDY + len(Due) * len(self._attempts):
            self._dues.tidy(lambda due: due[1] in self._attempts)

    # -- time --------------------------------------------------------------------------------------------------

    def expect(self, due: Due, attempt: Attempt, seconds: float) -> None:
        """Let something come due for an attempt, unless it is over by then."""
        self._dues.expect((due, attempt.id), seconds)

    def due(self) -> Iterator[tuple[Due, Attempt]]:
        """Yield what has come due since the last call."""
        for due, attempt_id in self._dues.due():
            attempt = self._attempts.get(attempt_id)
            if attempt is not None:
                yield due, attempt

    def patience(self, most: float) -> float:
        """Return the seconds until something comes due, ``most`` at the most."""
        return self._dues.patience(most)
