"""Up: `doorman up`: the named programs of a file, kept running until one is given up or somebody ends them."""

from __future__ import annotations

import argparse
import os
import signal
import time
from collections import deque
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from doorman.cli.plan import Plan, Program, plan_of
from doorman.cli.prefix import Prefixed
from doorman.cli.restarts import ABNORMAL, TooOften, pause_before
from doorman.cli.rows import ending
from doorman.cli.session import LONG, Session, session
from doorman.states import State
from doorman.task import Task

__all__ = ["main"]

GIVEN_UP: Final = 1
"""Exit code when a program was given up, or failed and does not come back."""


def main(given: argparse.Namespace) -> int:
    """Run the programs until all have ended; 1 if one was given up or failed for good."""
    plan = plan_of(given.file)
    with session(given, "up", log_path=given.log_path) as opened:
        crew = _Crew(opened, plan, given.cwd)
        opened.restarts = crew.restarts
        while crew.tick():
            opened.wait(crew.patience)
    return GIVEN_UP if crew.failed else 0


@dataclass(eq=False)
class _Seat:
    """The place of one process, which several may hold one after the other."""

    name: str
    group: str
    program: Program
    task: Task | None = None
    due: float | None = 0.0
    """When it is to be started; None: not before it has ended, or never."""
    starts: int = 0
    before: deque[float] = field(default_factory=deque)


class _Crew:
    """All processes of a plan."""

    def __init__(self, opened: Session, plan: Plan, cwd: str | None) -> None:
        self.failed = False
        self._opened, self._manager = opened, opened.manager
        self._folder = plan.folder if cwd is None else Path(cwd)
        self._seats = [seat for name, program in plan.programs.items() for seat in _seats(name, program)]
        self._ending = False
        self._printer = Prefixed([seat.name for seat in self._seats], lambda: opened.interrupt(signal.SIGPIPE))

    def restarts(self, task: Task) -> int:
        """Return how often a task's process was replaced."""
        return next((seat.starts - 1 for seat in self._seats if seat.task is task), 0)

    @property
    def patience(self) -> float:
        """Seconds until one is to be started."""
        now = time.monotonic()
        return max(0.0, min([LONG, *(seat.due - now for seat in self._seats if seat.due is not None)]))

    def tick(self) -> bool:
        """Do what can be done now; True while anything runs or is to run again."""
        self._start()
        self._manager.tick()
        self._bury()
        self._end()
        return any(seat.task is not None or seat.due is not None for seat in self._seats)

    def _start(self) -> None:
        for seat in self._seats:
            if seat.due is not None and seat.due <= time.monotonic() and not self._ending:
                seat.due = None
                seat.starts += 1
                seat.task = self._manager.add_task(self._task(seat))

    def _task(self, seat: _Seat) -> Task:
        program = seat.program
        return Task.command(
            program.argv,
            name=seat.name,
            handler=seat.group,
            expires_in=program.expires,
            wrapper=program.wrapper,
            cwd=self._folder / (program.cwd or ""),
            # What a Python program writes to a pipe would come in blocks, much later.
            env={"PYTHONUNBUFFERED": "1", **os.environ, **program.env},
            on_output=self._printer.line,
        )

    def _bury(self) -> None:
        for seat in self._seats:
            if seat.task is not None and seat.task.done():
                task, seat.task = seat.task, None
                self._ended(seat, task)

    def _ended(self, seat: _Seat, task: Task) -> None:
        """Say how it ended, and when it comes back. Four cases: told to; soon; never again; too often."""
        how = f"{task.state}: {ending(task) if task.identity else task.exception()}"
        if self._ending or task.state is State.CANCELLED:
            self._printer.note(seat.name, how)
            return
        try:
            pause = pause_before(seat.program, seat.before, task.state, time.monotonic())
        except TooOften as error:
            self._printer.note(seat.name, f"{how}; given up, and all ends: {error}")
            self.failed = self._ending = True
            return
        if pause is None:
            self.failed = self.failed or task.state in ABNORMAL
            self._printer.note(seat.name, how)
        else:
            self._printer.note(seat.name, f"{how}; again in {pause:g} s")
            seat.due = time.monotonic() + pause

    def _end(self) -> None:
        """Stop them in reverse order, each program when those behind it have ended; or all at once in a hurry."""
        self._ending = self._ending or self._opened.ending
        if not self._ending:
            return
        for seat in self._seats:
            seat.due = None
        left = [seat for seat in self._seats if seat.task is not None]
        if self._opened.hurry:
            self._manager.kill()
        for seat in left:
            if seat.task is not None and seat.group == left[-1].group:
                self._manager.cancel(seat.task)


def _seats(name: str, program: Program) -> list[_Seat]:
    if program.processes == 1:
        return [_Seat(name, name, program)]
    return [_Seat(f"{name}.{number}", name, program) for number in range(1, program.processes + 1)]
