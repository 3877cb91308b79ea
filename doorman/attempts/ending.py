"""Ending: how an attempt ends, and its task with it, unless that is to be tried again."""

from __future__ import annotations

import signal
from collections import Counter
from collections.abc import Callable
from typing import Any, Final

from doorman.attempts.attempt import Attempt
from doorman.attempts.running import Due, Running
from doorman.errors import TaskDetached, WorkerDied
from doorman.journal.recorder import Recorder
from doorman.launcher import Exited
from doorman.output.stream import Streams
from doorman.policy.admission import Admission
from doorman.policy.cancellation import Cancellation
from doorman.states import State
from doorman.task import Task

__all__ = ["Ending"]

LAST_WORDS: Final = 0.5
"""Seconds for which the result of a process that died unexpectedly may still be under way."""


class Ending:
    """Takes what ends an attempt, from wherever it comes, to its task, to the journal and to those who wait.

    ``hear`` hears what the processes have said by now; ``refused`` counts those that never proved themselves.
    """

    def __init__(
        self,
        running: Running,
        admission: Admission,
        recorder: Recorder,
        streams: Streams,
        cancellation: Cancellation,
        *,
        hear: Callable[[], object],
        refused: Counter[str],
    ) -> None:
        self._running = running
        self._admission = admission
        self._recorder = recorder
        self._streams = streams
        self._cancellation = cancellation
        self._hear = hear
        self._refused = refused
        self.for_good = False
        """Whether nothing is tried again: its manager closes."""

    # -- what ends an attempt ----------------------------------------------------------------------------------

    def cancel(self, task: Task) -> bool:
        """End a task that nobody wants any more, waiting or running; False if it has ended."""
        return self._cut_short(task, State.CANCELLED)

    def fail(self, task: Task, error: BaseException) -> None:
        """End a task because of what its policy raised, or because it cannot be started at all."""
        self._cut_short(task, State.FAILED, error)

    def cancel_siblings(self, task: Task) -> None:
        """Stop the running tasks with the same handler."""
        for sibling in self._running.siblings(task):
            self._stop_for_good(sibling, State.CANCELLED)

    def settle(self) -> None:
        """Let go on what came after tasks that are done, and end what came after others."""
        for task, error in self._admission.settle():
            self._end(task, State.CANCELLED, error=error)

    def keep_time(self) -> None:
        """Do what has come due."""
        for due, attempt in self._running.due():
            if due is Due.KILL:
                attempt.signal(signal.SIGKILL)
            elif due is Due.LAST_WORDS:
                self.conclude(attempt)
            elif due is Due.EXPIRY and attempt.outcome is None:
                self._running.stop(attempt, State.EXPIRED)
            elif due is Due.EXPIRY:
                self._running.linger(attempt)
            elif due is Due.LINGERED:
                self._running.stop(attempt, State.FAILED)  # No matter which: it ends as its result says.
            elif due is Due.HELLO and attempt.task.identity is None:
                self._refused["no hello in time"] += 1
                if attempt.salt:  # Nobody knows that it is the task's: it is left alone.
                    self.conclude(attempt)
                else:
                    self._running.stop(attempt, State.FAILED)

    def not_launched(self, attempt: Attempt, why: str) -> None:
        """No process could be made."""
        stopped = attempt.stopping not in (None, State.FAILED)
        error = None if stopped else attempt.error or WorkerDied(None, None, None, why)
        self.over(attempt, attempt.stopping or State.FAILED, error=error)

    def exited(self, attempt: Attempt, event: Exited) -> None:
        """Its process has ended. Its result may still be under way: then the end waits for it a little."""
        attempt.exited = event
        task = attempt.task
        task.exit_code, task.signal, task.max_rss = event.exit_code, event.signal, event.max_rss
        if not task.detach:
            attempt.end_own()  # A wrapper's end is the attempt's, and nothing of it goes on.
        unexpected = attempt.outcome is None and attempt.stopping is None and not task.argv
        if (unexpected and task.state is State.RUNNING) or self._recorder.awaits_end(attempt):
            self._running.expect(Due.LAST_WORDS, attempt, LAST_WORDS)
        else:
            self._hear()
            self.conclude(attempt)

    def let_go(self) -> None:
        """Leave detached processes that are at work to themselves, and to the journal's next manager."""
        for attempt in self._running:
            task = attempt.task
            at_work = task.identity is not None or attempt.salt
            if task.detach and at_work and attempt.stopping is None:
                self._running.let_go(attempt)
                self._admission.ended(attempt)
                left = TaskDetached(f"{task!r} runs on without this manager; open its journal to take it over")
                task.end(State.LOST, error=left)

    def give_up(self) -> None:
        """End what has not ended in all the time that there was."""
        for attempt in self._running:
            self.over(attempt, attempt.stopping or State.LOST, error=attempt.error)

    # -- the end -----------------------------------------------------------------------------------------------

    def conclude(self, attempt: Attempt) -> None:
        """End an attempt whose process has ended, as it says itself."""
        if attempt in self._running:
            self._recorder.recall(attempt)
            self.over(attempt, *attempt.verdict())

    def over(self, attempt: Attempt, state: State, value: Any = None, error: BaseException | None = None) -> None:
        """End an attempt, and its task with it unless it is to be tried again."""
        try:
            self._streams.end(attempt.id)
        finally:  # Whoever listens may be interrupted, as by Ctrl-C; the attempt is over all the same.
            self._decide(attempt, state, value, error)

    def forget(self, attempt: Attempt) -> None:
        """Count an attempt no more: its process is gone, or never came."""
        self._running.forget(attempt)
        self._admission.ended(attempt)

    def _decide(self, attempt: Attempt, state: State, value: Any, error: BaseException | None) -> None:
        task = attempt.task
        self.forget(attempt)
        # What was cancelled under the manager before this one is not wanted either, whatever its process still told.
        wanted = not (attempt.final or attempt.stopping is State.CANCELLED or self.for_good)
        state, value, error, pause = task.next_try(state, value, error, wanted=wanted)
        if pause is None:
            self._end(task, state, value, error)
        else:
            self._recorder.again(task)
            self._admission.rest(task, attempt.call, pause)
        self._recorder.forget(attempt)

    def _cut_short(self, task: Task, state: State, error: BaseException | None = None) -> bool:
        """Stop a task that runs, drop one that waits; False if it has ended."""
        attempt = self._running.of(task)
        if attempt is not None:
            attempt.error = error or attempt.error
            self._stop_for_good(attempt, state)
        elif self._admission.drop(task):
            self._end(task, state, error=error)
        else:
            return False
        return True

    def _stop_for_good(self, attempt: Attempt, ends_as: State) -> None:
        attempt.final = True  # Also if it is being stopped already, for another reason.
        self._running.stop(attempt, ends_as)

    def _end(self, task: Task, state: State, value: Any = None, error: BaseException | None = None) -> None:
        self._cancellation.forget(task)
        self._recorder.ended(task, state, value, error)
        task.end(state, value, error)
