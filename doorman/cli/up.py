"""Up: `doorman up`: the named programs of a file, kept running until one is given up or somebody ends them."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Iterable
from itertools import chain, cycle
from pathlib import Path
from typing import Any, Final, TextIO

from doorman.cli.manager_session import Session, session
from doorman.cli.map import FAILURES, ending
from doorman.cli.procfile import Plan, Program, plan_of
from doorman.errors import RestartedTooOften
from doorman.states import State
from doorman.task import Task

__all__ = ["Prefixed", "main"]


COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
"""ANSI's numbers: cyan, yellow, green, magenta, blue, and their bright ones."""


class Prefixed:
    """Prints lines behind names of one width; the names are coloured on a terminal, unless NO_COLOR is set.

    ``unread`` is called when nobody reads any more.
    """

    def __init__(self, names: Iterable[str], unread: Callable[[], None]) -> None:
        self._colours = dict(zip(names, cycle(COLOURS), strict=False))
        self._width = max(map(len, self._colours), default=0)
        self._unread = unread

    def line(self, task: Task, stream: str, line: str) -> None:
        """Print what a task wrote, to the stream that it wrote it to."""
        self._print(task.name, line, sys.stdout if stream == "stdout" else sys.stderr)

    def note(self, name: str, text: str) -> None:
        """Print what is to be said of one of them, to standard error."""
        self._print(name, f"({text})", sys.stderr)

    def _print(self, name: str, text: str, file: TextIO) -> None:
        head = f"{name:{self._width}} |"
        if file.isatty() and not os.environ.get("NO_COLOR"):
            head = f"\x1b[{self._colours[name]}m{head}\x1b[0m"
        try:
            print(head, text, file=file, flush=True)
        except BrokenPipeError:
            # What is left in the buffer would fail once more while the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), file.fileno())
            self._unread()


GIVEN_UP: Final = 1
"""Exit code when a program was given up, or failed and does not come back."""


def main(given: argparse.Namespace) -> int:
    """Run the programs until all have ended; 1 if one was given up or failed for good."""
    plan = plan_of(given.file)
    with session(given, "up", log_path=given.log_path) as opened:
        crew = _Crew(opened, plan, given.cwd)
        while crew.tick():
            opened.wait()
    return GIVEN_UP if crew.failed else 0


class _Seat(Task):
    """The place of one process, which several hold one after the other, as the task's own policy says."""

    note: Callable[[_Seat, str], None]
    """Says of it what became of a process."""
    stays: Callable[[], bool]
    """Whether another process may come after one that has ended."""

    def _next_attempt(
        self, state: State, value: Any, error: BaseException | None, *, wanted: bool
    ) -> tuple[State, Any, BaseException | None, float | None]:
        """Do as a task does, and say how its process ended if another comes after it, and when."""
        how = f"{state}: {ending(self) if self.identity else error}"
        end = super()._next_attempt(state, value, error, wanted=wanted and self.stays())
        if end[3] is not None:
            self.note(self, f"{how}; again in {end[3]:.2g} s")
        return end


class _Crew:
    """All processes of a plan."""

    def __init__(self, opened: Session, plan: Plan, cwd: str | None) -> None:
        self.failed = False
        self._opened, self._manager = opened, opened.manager
        self._folder = plan.folder if cwd is None else Path(cwd)
        self._ending = False
        names = {name: _names(name, program) for name, program in plan.programs.items()}
        self._printer = Prefixed([*chain(*names.values())], opened.unread)
        self._left = [
            self._manager.add_task(self._seat(name, group, plan.programs[group]))
            for group in names
            for name in names[group]
        ]

    def tick(self) -> bool:
        """Do what can be done now; True while anything runs or is to run again."""
        self._manager.tick()
        self._bury()
        self._end()
        return bool(self._left)

    def _seat(self, name: str, group: str, program: Program) -> _Seat:
        seat = _Seat.command(
            program.argv,
            name=name,
            handler=group,
            expires_in=program.expires,
            wrapper=program.wrapper,
            cwd=self._folder / (program.cwd or ""),
            # What a Python program writes to a pipe would come in blocks, much later.
            env={"PYTHONUNBUFFERED": "1", **os.environ, **program.env},
            on_output=self._printer.line,
            **program.comeback,
        )
        assert isinstance(seat, _Seat)
        seat.note = lambda seat, how: self._printer.note(seat.name, how)
        seat.stays = lambda: not self._ending
        return seat

    def _bury(self) -> None:
        """Say of those that do not come back how they ended; all end if one was given up."""
        for seat in [seat for seat in self._left if seat.done()]:
            self._left.remove(seat)
            error = seat.exception()
            often = isinstance(error, RestartedTooOften)
            self._printer.note(seat.name, _end_of(seat) + (f"; given up, and all ends: {error}" if often else ""))
            self.failed = self.failed or (seat.state in FAILURES and not self._ending)
            self._ending = self._ending or often

    def _end(self) -> None:
        """Stop them in reverse order, each program when those behind it have ended; or all at once in a hurry."""
        self._ending = self._ending or self._opened.ending
        if not self._ending:
            return
        if self._opened.hurry:
            self._manager.kill()
        for seat in [seat for seat in self._left if seat.handler == self._left[-1].handler]:
            self._manager.cancel(seat)


def _end_of(seat: Task) -> str:
    """Say how its last process ended, or what kept it from one."""
    if seat.identity is not None:
        return f"{seat.state}: {ending(seat)}"
    return str(seat.state) if seat.state is State.CANCELLED else f"{seat.state}: {seat.exception()}"


def _names(name: str, program: Program) -> list[str]:
    return [name] if program.processes == 1 else [f"{name}.{number}" for number in range(1, program.processes + 1)]
