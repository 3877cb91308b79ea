"""`doorman map`: run a command for each input, many at a time, and print a table of the results."""

from __future__ import annotations

import argparse
import shlex
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Final

from doorman.cli.manager_session import ManagerSession, open_manager
from doorman.cli.map_io import Inputs, OutputPrinter, Template, split_command
from doorman.cli.progress_bar import Counts, progress_on_stderr
from doorman.cli.ps import align, exit_text, format_memory
from doorman.journal.journal import Journal
from doorman.rules import Rule
from doorman.states import State
from doorman.task import Task

__all__ = ["FAILURES", "FinishedCommands", "ResultTable", "main"]

HEAD: Final = ("INPUT", "STATE", "EXIT", "SECONDS", "MAX RSS", "PID", "STRENGTH")
FAILURES: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})
MAX_EXIT_CODE: Final = 101
"""Exit code for this number of failures or more: shells and signals use the codes above 125."""


def main(arguments: argparse.Namespace) -> int:
    """Run the command for each input; return the number of failures, at most `MAX_EXIT_CODE`."""
    command, words = split_command(arguments.command)
    template = Template(command, shell=arguments.shell)
    # Read the journal before the manager opens it and writes to it.
    finished = FinishedCommands(arguments.resume)
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
        work = _MapWork(arguments, template, inputs, session, finished)
        work.print_line, work.print_output = progress.print_line, outputs.print_output
        session.progress = lambda: str(work.counts)
        while work.tick():
            progress.show(work.counts)
            session.wait(progress.max_wait)
            if outputs.closed:
                session.output_closed()
    if arguments.table != "none" and (table := work.results.table(failed_only=arguments.table == "failed")):
        print(table, file=sys.stderr)
    progress.print_line(work.summary)
    return 128 + session.signal if session.signal else min(work.results.failed, MAX_EXIT_CODE)


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


class FinishedCommands:
    """The commands that are done according to a journal; empty without one. Raises JournalError."""

    def __init__(self, path: str | None) -> None:
        self._done: Counter[tuple[str, ...]] = Counter()
        if path is not None and Path(path).exists():
            self._done.update(each.command for each in Journal.read(path) if each.state is State.DONE)

    def remove(self, command: Sequence[str]) -> bool:
        """Remove one run of a command; return False if there is none."""
        # The journal escapes file names that are not valid text; compare in its form.
        words = tuple(word.encode(errors="backslashreplace").decode() for word in command)
        if not self._done[words]:
            return False
        self._done[words] -= 1
        return True


class ResultTable:
    """A row for each finished input, in the order of the inputs, and the number of each kind."""

    def __init__(self) -> None:
        self.failed = 0
        self.done = 0
        self.cancelled = 0
        self.skipped = 0
        """Inputs that were done in an earlier run, according to the journal."""
        self._rows: dict[int, tuple[bool, tuple[str, ...]]] = {}

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, number: int, text: str, task: Task, *, failed: bool) -> None:
        """Add the result of one input."""
        self.failed += failed
        self.done += task.state is State.DONE
        self.cancelled += task.state is State.CANCELLED and not failed
        identity = task.identity
        row = (
            text,
            str(task.state),
            exit_text(task),
            "-" if task.duration is None else f"{task.duration:.2f}",
            format_memory(task.max_rss),
            str(identity.pid) if identity else "-",
            identity.strength if identity else "-",
        )
        self._rows[number] = failed, row

    def add_skipped(self, number: int, text: str) -> None:
        """Add an input that was done in an earlier run."""
        self.skipped += 1
        self._rows[number] = False, (text, "done before", *("-",) * (len(HEAD) - 2))

    def table(self, *, failed_only: bool = False) -> str:
        """Return the table; empty without rows."""
        rows = [row for _, (failed, row) in sorted(self._rows.items()) if failed or not failed_only]
        return align([HEAD, *rows]) if rows else ""


class _MapWork:
    """The tasks of the inputs read so far, and their results."""

    def __init__(
        self,
        arguments: argparse.Namespace,
        template: Template,
        inputs: Inputs,
        session: ManagerSession,
        finished: FinishedCommands,
    ) -> None:
        self.results = ResultTable()
        self.print_line: Callable[[str], None] = print
        self.print_output: Callable[[int, Task | None], None] = lambda *_: None
        self._arguments, self._template, self._inputs, self._finished = arguments, template, inputs, finished
        self._session, self._manager = session, session.manager
        self._tasks: dict[Task, tuple[int, str]] = {}
        self._halted = False
        self._started = time.monotonic()

    @property
    def counts(self) -> Counts:
        """Numbers for the progress bar."""
        return Counts(len(self.results), self._inputs.total, self.results.failed, len(self._manager.running))

    @property
    def summary(self) -> str:
        """The final line."""
        results, total = self.results, self._inputs.total
        words = [f"{results.done} done", f"{results.failed} failed"]
        words += [f"{results.skipped} done before"] if results.skipped else []
        left = 0 if total is None else total - len(results) + results.cancelled
        words += ["some not run"] if total is None else [f"{left} not run or stopped"] if left else []
        return f"{', '.join(words)} in {time.monotonic() - self._started:.1f} s"

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
            text = self._inputs.pop()
            if text is None:
                return
            self._add_task(self._inputs.popped, text)

    def _add_task(self, number: int, text: str) -> None:
        command = self._template.fill(text, number)
        if self._finished.remove(command):
            self.print_output(number, None)
            self.results.add_skipped(number, text)
            return
        task = Task.command(
            command,
            name=text.encode(errors="backslashreplace").decode(),
            handler=self._arguments.command[0],
            retries=self._arguments.retries,
            expires_in=self._arguments.timeout,
            cwd=self._arguments.cwd,
        )
        self._tasks[task] = number, text
        self._manager.add_task(task)

    def _collect_results(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            number, text = self._tasks.pop(task)
            self.print_output(number, task)
            # A task that `doorman stop` cancelled alone counts as failed: its input was not processed.
            failed = task.state in FAILURES or (task.state is State.CANCELLED and not self._halted)
            self.results.add(number, text, task, failed=failed)
            if failed:
                self.print_line(f"{text!r} {task.state}: {exit_text(task) if task.identity else task.exception()}")
                self._halt()

    def _halt(self) -> None:
        """Apply ``--halt`` after a failure."""
        if self._arguments.halt == "now":
            self._manager.stop()
        elif self._arguments.halt == "soon" and not self._halted:
            # Running tasks may finish; only the queue is emptied.
            for waiting in self._manager.waiting:
                self._manager.cancel(waiting)
        self._halted = self._halted or self._arguments.halt is not None
