"""Admission: the tasks that wait, and which of them may start now."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from doorman.attempt import Attempt
from doorman.identity import boot_id
from doorman.load import Load, Meter
from doorman.rules import Rule, Rules
from doorman.task import Task

__all__ = ["Admission"]


class Admission:
    """The queue in front of a manager, in the order in which tasks were added; rules and questions hold some back."""

    def __init__(self, rules: Iterable[Rule]) -> None:
        self.rules = Rules(rules)
        self.why: dict[Task, str] = {}
        """What held a waiting task back when it was last looked at."""
        self._waiting: dict[Task, bytes] = {}
        self._meter = Meter()
        self._load = Load()
        self._asked = False

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks that wait."""
        return tuple(self._waiting)

    @property
    def changes_unseen(self) -> bool:
        """Whether a task may become admissible without anything happening that a wait would notice."""
        return bool(self._waiting) and (self._asked or self.rules.by_load)

    def add(self, task: Task, call: bytes) -> None:
        """Let a task wait, with its pickled call."""
        if not self._waiting:
            self._meter.forget()  # While nobody waited nothing was measured.
        self._waiting[task] = call

    def put_back(self, task: Task, call: bytes) -> None:
        """Let a task wait in front of all others: it was admitted, and no process could be had."""
        self._waiting = {task: call, **self._waiting}

    def drop(self, task: Task) -> bool:
        """Let it wait no longer; False if it did not wait."""
        self.why.pop(task, None)
        return self._waiting.pop(task, None) is not None

    def admissible(self, running: Iterable[Attempt]) -> Iterator[tuple[Task, bytes, Exception | None]]:
        """Yield the tasks that may start, in order; those behind one that is held back may overtake it.

        With each comes what its own question raised, if it did. The one who starts a task has to `drop` it, and to say
        so by `started`, so that the rules count it at once.
        """
        self._asked = False
        if len(self.rules):
            self._load = self._meter.measure(map(_place, running), read=self.rules.by_load)
        for task, call in list(self._waiting.items()):
            try:
                why = self._holds_back(task)
            except Exception as error:  # noqa: BLE001 - a question of one task's must not stop the others
                yield task, call, error
                continue
            if why is not None:
                self.why[task] = why
            elif task in self._waiting:  # Its own question may have cancelled it.
                yield task, call, None

    def started(self, task: Task) -> None:
        """Count a process that was just asked for as one busy core: its load cannot show yet."""
        if len(self.rules):
            self._meter.expect(self._load, task.handler)

    def _holds_back(self, task: Task) -> str | None:
        if task.can_run is not None:
            self._asked = True
            if not task.can_run():
                return "its can_run says no"
        if task.ignores_rules or not len(self.rules):
            return None
        return self.rules.holds_back(task.handler, self._load)


def _place(attempt: Attempt) -> tuple[str, str, int | None]:
    """Tell where an attempt's load is to be read: nowhere before its own code runs, or on another host."""
    known = attempt.task.identity
    return attempt.id, attempt.task.handler, known.pid if known is not None and known.boot_id == boot_id() else None
