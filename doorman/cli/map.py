"""`doorman map`: run a command for each input, many at a time, and print a table of the results."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Final

from doorman.cli.manager_session import ManagerSession, open_manager
from doorman.cli.map_io import (
    SEPARATOR,
    Counts,
    Inputs,
    OutputPrinter,
    ProgressLines,
    Template,
    progress_on_stderr,
    split_command,
)
from doorman.cli.ps import align, end_text, exit_text, format_memory, pid_cells
from doorman.journal.journal import Journal
from doorman.rules import Rule
from doorman.states import ABNORMAL, State
from doorman.task import Task
from remit.codec import printable

HEAD: Final = ("INPUT", "STATE", "EXIT", "SECONDS", "MAX RSS", "PID", "STRENGTH")
SHOWN_CHARS: Final = 100  # of an input in a message
MAX_EXIT_CODE: Final = 101  # shells and signals use the codes above 125


def main(arguments: argparse.Namespace) -> int:
    """Run the command for each input; return the number of failures, at most `MAX_EXIT_CODE`."""
    command, words = split_command(arguments.command)
    template = Template(command, shell=arguments.shell)
    # Read the journal before the manager opens it and writes to it.
    finished = _finished_commands(arguments.resume)
    if arguments.dry_run:
        return _print_commands(template, arguments, words)
    journal = None if arguments.resume is None else Journal(arguments.resume, keep=sys.maxsize)
    with (
        closing(progress_on_stderr()) as progress,
        closing(OutputPrinter(arguments.log_path, progress.hidden, keep_order=arguments.keep_order)) as outputs,
        open_manager(arguments, "map", log_path=outputs.folder, rules=_rules(arguments), journal=journal) as session,
    ):
        for task in session.manager.recovered:
            task.cancel()  # its input is given again
        inputs = _inputs(arguments, words, session.wake)
        work = _MapWork(arguments, template, inputs, finished, session, progress, outputs)
        session.progress = lambda: str(work.counts)
        while work.tick():
            progress.show(work.counts)
            session.wait(progress.max_wait)
            if outputs.closed:
                session.output_closed()
    if not work.counts.total and len(command) > 1 and not sys.stdin.isatty() and words is None:
        progress.print_line(f"standard input had no line: inputs follow {SEPARATOR!r}, or are its lines")
    if arguments.table != "none" and (table := work.table(failed_only=arguments.table == "failed")):
        print(table, file=sys.stderr)
    progress.print_line(work.summary)
    session.raise_if_interrupted()
    return 128 + session.signal if session.signal else min(work.counts.failed, MAX_EXIT_CODE)


def _rules(arguments: argparse.Namespace) -> list[Rule]:
    rules = [Rule(processes=arguments.processes)]
    if arguments.max_load is not None:
        # One process may always run: otherwise a load caused by other programs would stop the work for good.
        rules.append(Rule(processes=1, minimum_processor_load=arguments.max_load))
    return rules


def _inputs(arguments: argparse.Namespace, words: list[str] | None, wake: Callable[[], None]) -> Inputs:
    if words is not None:
        return Inputs(words)
    if sys.stdin.isatty():
        print("doorman: inputs are read from the terminal, one per line; Ctrl-D ends them", file=sys.stderr)
    return Inputs.read(sys.stdin.fileno(), b"\0" if arguments.null else b"\n", wake)


def _print_commands(template: Template, arguments: argparse.Namespace, words: list[str] | None) -> int:
    separator = "\0" if arguments.null else "\n"
    for number, text in enumerate(words if words is not None else filter(None, sys.stdin.read().split(separator)), 1):
        print(shlex.join(template.fill(text, number)))
    return 0


def _finished_commands(path: str | None) -> Counter[tuple[str, ...]]:
    """Return how often each command is done according to a journal. Raises JournalError."""
    if path is None or not Path(path).exists():
        return Counter()
    return Counter(each.command for each in Journal.read(path) if each.state is State.DONE)


def _shortened(text: str) -> str:
    """Return an input for a message."""
    return repr(text) if len(text) <= SHOWN_CHARS else f"{text[:SHOWN_CHARS]!r}... ({len(text)} characters)"


class _MapWork:
    """The tasks of the inputs read so far, and the rows of those that have finished."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        template: Template,
        inputs: Inputs,
        finished: Counter[tuple[str, ...]],
        session: ManagerSession,
        progress: ProgressLines,
        outputs: OutputPrinter,
    ) -> None:
        self._arguments, self._template, self._inputs, self._finished = arguments, template, inputs, finished
        self._session, self._manager = session, session.manager
        self._progress, self._outputs = progress, outputs
        self._tasks: dict[Task, tuple[int, str]] = {}
        self._rows: dict[int, tuple[str, ...]] = {}
        self._failed: set[int] = set()
        self._done = self._cancelled = self._skipped = 0
        self._halted = False
        self._started = time.monotonic()

    @property
    def counts(self) -> Counts:
        """Numbers for the progress bar."""
        return Counts(len(self._rows), self._inputs.total, len(self._failed), len(self._manager.running))

    @property
    def summary(self) -> str:
        """The final line."""
        words = [f"{self._done} done", f"{len(self._failed)} failed"]
        if self._skipped:
            words.append(f"{self._skipped} done before")
        if self._inputs.total is None:
            words.append("some not run")
        elif left := self._inputs.total - len(self._rows) + self._cancelled:
            words.append(f"{left} not run or stopped")
        return f"{', '.join(words)} in {time.monotonic() - self._started:.1f} s"

    def table(self, *, failed_only: bool) -> str:
        """Return a table with a row for each finished input, in the order of the inputs; empty without rows."""
        numbers = sorted(self._failed if failed_only else self._rows)
        return align([HEAD, *(self._rows[number] for number in numbers)]) if numbers else ""

    def tick(self) -> bool:
        """Make progress without waiting; return True while inputs or tasks are left."""
        self._halted = self._session.stop_if_requested() or self._halted
        self._add_tasks()
        self._manager.tick()
        self._collect_results()
        # Fill the slots that have just become free: the next tick may be a long wait away.
        self._add_tasks()
        return self._manager.busy or not (self._inputs.exhausted or self._halted)

    def _add_tasks(self) -> None:
        # Keep the queue short: the manager checks its rules against waiting tasks in each tick.
        while not self._halted and len(self._manager.waiting) < self._arguments.processes:
            if (text := self._inputs.pop()) is None:
                return
            self._add_task(self._inputs.popped, text)

    def _add_task(self, number: int, text: str) -> None:
        command = self._template.fill(text, number)
        done = tuple(map(printable, command))
        if self._finished[done]:
            self._finished[done] -= 1
            self._skipped += 1
            self._add_row(number, text, "done before")
            return
        if "\0" in "".join(command):
            self._failed.add(number)
            self._add_row(number, text, str(State.FAILED))
            self._progress.print_line(f"{_shortened(text)} failed: it contains a NUL character, which no argument may")
            self._halt()
            return
        task = Task.command(
            command,
            name=printable(text),
            handler=self._arguments.command[0],
            retries=self._arguments.retries,
            expires_in=self._arguments.timeout,
            cwd=self._arguments.cwd,
        )
        self._tasks[task] = number, text
        self._manager.add_task(task)

    def _add_row(self, number: int, text: str, state: str) -> None:
        """Add the row of an input that needs no process."""
        self._outputs.print_output(number, None)
        self._rows[number] = (text, state, *("-",) * (len(HEAD) - 2))

    def _collect_results(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            number, text = self._tasks.pop(task)
            self._outputs.print_output(number, task)
            seconds = "-" if task.duration is None else f"{task.duration:.2f}"
            memory = format_memory(task.max_rss)
            self._rows[number] = (text, str(task.state), exit_text(task), seconds, memory, *pid_cells(task.identity))
            self._done += task.state is State.DONE
            # A task that `doorman stop` cancelled alone counts as failed: its input was not processed.
            if task.state in ABNORMAL or (task.state is State.CANCELLED and not self._halted):
                self._failed.add(number)
                self._progress.print_line(f"{_shortened(text)} {end_text(task, task.state, task.exception())}")
                self._halt()
            else:
                self._cancelled += task.state is State.CANCELLED

    def _halt(self) -> None:
        if self._arguments.halt == "now":
            self._manager.stop()
        elif self._arguments.halt == "soon" and not self._halted:
            # Running tasks may finish; only the queue is emptied.
            for waiting in self._manager.waiting:
                self._manager.cancel(waiting)
        self._halted = self._halted or self._arguments.halt is not None
