"""Launching: the manager's side of its launcher: a process is ordered for what may start, and comes, or does not."""

from __future__ import annotations

import os
import resource
from collections import deque
from typing import Final

from doorman.attempts.attempt import Attempt
from doorman.attempts.ending import Ending
from doorman.attempts.orders import Orders
from doorman.attempts.reception import Reception
from doorman.attempts.running import Running
from doorman.errors import LaunchRefused
from doorman.journal.recorder import Recorder
from doorman.launcher import Event, Exited, Launched, Launcher
from doorman.output.stream import Streams
from doorman.policy.admission import Admission
from doorman.policy.lanes import Entry
from doorman.states import State

__all__ = ["Launching"]

AT_ONCE: Final = 64
"""Processes that may be on their way from launch to proof: more only make each other wait."""
DESCRIPTORS: Final = 5
"""Descriptors that a process may take up here until it has proven itself: two pidfds, two pipes and its connection."""
SPARE: Final = 16
"""Descriptors that are left to whatever else opens one."""


class Launching:
    """Orders the processes of those tasks that are admitted, and hears what becomes of them.

    ``patience`` is how many seconds a process has to prove itself.
    """

    def __init__(
        self,
        launcher: Launcher,
        orders: Orders,
        running: Running,
        admission: Admission,
        recorder: Recorder,
        streams: Streams,
        reception: Reception,
        ending: Ending,
        patience: float,
    ) -> None:
        self._launcher = launcher
        self._orders = orders
        self._running = running
        self._admission = admission
        self._recorder = recorder
        self._streams = streams
        self._reception = reception
        self._ending = ending
        self._patience = patience
        self._events: deque[Event] = deque()

    @property
    def full(self) -> bool:
        """Whether so many processes are on their way that no other is asked for."""
        return self._running.unproven >= AT_ONCE

    @property
    def pending(self) -> bool:
        """Whether there is word of the launcher's that was heard and not obeyed."""
        return bool(self._events)

    # -- from a task that waits to an order --------------------------------------------------------------------

    def admit(self) -> None:
        """Start what may start."""
        if len(self._admission) and not self.full:
            self._admission.admit(self._running, self._start, self._ending.fail)

    def _start(self, entry: Entry) -> bool:
        """Ask for a process; False if no other is to be asked for just now."""
        if not _descriptors_left((self._running.unproven + 1) * DESCRIPTORS + SPARE):
            self._admission.refused("few descriptors are left to this process: see `ulimit -n`")
            return False
        task = entry.task
        attempt = Attempt(task, entry.call, task.attempt + 1, entry.turn)
        self._recorder.started(attempt)
        try:
            self._order(attempt)
        except LaunchRefused as error:
            self._recorder.again(task)
            self._admission.refused(str(error))
            return False
        except (OSError, ValueError) as error:  # It cannot be written down, as a wrapper whose words are no text.
            self._ending.fail(task, error)
            return True
        self._admission.drop(task)
        self._admission.started(attempt)
        task.attempt, task.progress = attempt.number, None
        task.output = self._streams.files(task, attempt.id)
        self._running.add(attempt)
        if task.stops_siblings:
            self._ending.cancel_siblings(task)
        return not self.full

    def _order(self, attempt: Attempt) -> None:
        """Order a process. Raises LaunchRefused; OSError for a file of its output, ValueError for the order itself."""
        outputs = self._streams.open(attempt.task, attempt.id)
        try:
            self._launcher.launch(self._orders.written(attempt, outputs, record=self._recorder.place_of(attempt)))
        except BaseException:
            self._streams.end(attempt.id)
            raise
        finally:
            outputs.close()

    # -- from an order to a process, and to its end ------------------------------------------------------------

    def hear(self) -> None:
        """Obey what the launcher has to say."""
        self._events.extend(self._launcher.poll())
        while self._events:  # Kept: who is interrupted in one, as by Ctrl-C, goes on with the next.
            event = self._events.popleft()
            attempt = self._running.named(event.attempt)
            if attempt is None:
                if isinstance(event, Launched):
                    event.process.close()
            elif isinstance(event, Launched):
                self._launched(attempt, event)
            elif isinstance(event, Exited):
                self._ending.exited(attempt, event)
            elif event.back_pressure and attempt.stopping is None:
                self._put_back(attempt, event.why)
            else:
                self._ending.not_launched(attempt, event.why)

    def _launched(self, attempt: Attempt, event: Launched) -> None:
        attempt.reach = event.reach
        self._recorder.launched(attempt, event.process)
        self._running.launched(attempt, event.process, self._patience)
        self._reception.admit_early(attempt)

    def _put_back(self, attempt: Attempt, why: str) -> None:
        """Let its task wait where it stood, as if no process had been asked for: the system has none to give."""
        task = attempt.task
        self._ending.forget(attempt)
        self._streams.end(attempt.id)
        task.enter(State.WAITING)
        task.attempt -= 1
        self._recorder.again(task)
        self._admission.put_back(attempt, f"no process can be started now: {why}")


def _descriptors_left(count: int) -> bool:
    """Tell whether so many more can be opened, as far as the lowest free one tells: without one no proof is heard."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    try:
        lowest = os.open("/", os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(lowest)
    return most == resource.RLIM_INFINITY or lowest + count <= most
