"""Each: `doorman map`: a command for each input, many at a time, and a table of what became of them."""

from __future__ import annotations

import argparse
import shlex
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, Final

from doorman.cli.manager_session import Session, session
from doorman.cli.map_io import Inputs, Outputs, Template, split
from doorman.cli.progress_bar import Counts, progress_on_stderr
from doorman.cli.ps import aligned, as_memory
from doorman.journal.journal import Journal
from doorman.manager import ProcessManager
from doorman.rules import Rule
from doorman.states import State
from doorman.task import Task

__all__ = ["FAILURES", "Before", "Rows", "drop_rest", "ending", "journal_for", "main"]


HEAD: Final = ("INPUT", "STATE", "EXIT", "SECONDS", "MAX RSS", "PID", "STRENGTH")
FAILURES: Final = frozenset({State.FAILED, State.EXPIRED, State.LOST})


class Rows:
    """The rows in the order of the inputs, and how many of each kind."""

    def __init__(self) -> None:
        self.failed = 0
        self.done = 0
        self.cancelled = 0
        self.skipped = 0
        """Inputs that were done before, according to a journal."""
        self._rows: dict[int, tuple[bool, tuple[str, ...]]] = {}

    def ended(self, number: int, text: str, task: Task, *, failed: bool) -> bool:
        """Take in what became of one input; return whether it failed."""
        self.failed += failed
        self.done += task.state is State.DONE
        self.cancelled += task.state is State.CANCELLED and not failed
        self._rows[number] = failed, _row(text, task)
        return failed

    def done_before(self, number: int, text: str) -> None:
        """Take in an input that was not run, since it had been done."""
        self.skipped += 1
        self._rows[number] = False, (text, "done before", *("-",) * (len(HEAD) - 2))

    @property
    def ran(self) -> int:
        """How many inputs are over with."""
        return len(self._rows)

    def table(self, *, failed_only: bool = False) -> str:
        """Return the table; empty without rows."""
        rows = [row for _, (failed, row) in sorted(self._rows.items()) if failed or not failed_only]
        return aligned([HEAD, *rows]) if rows else ""


def _row(text: str, task: Task) -> tuple[str, ...]:
    identity = task.identity
    return (
        text,
        str(task.state),
        ending(task),
        "-" if task.duration is None else f"{task.duration:.2f}",
        as_memory(task.max_rss),
        str(identity.pid) if identity else "-",
        identity.strength if identity else "-",
    )


def ending(task: Task) -> str:
    """Return its exit code, or the name of the signal that ended it."""
    if task.signal is not None:
        return signal.Signals(task.signal).name
    return "-" if task.exit_code is None else str(task.exit_code)


class Before:
    """The commands that ended well according to a journal; empty without one. Raises JournalError."""

    def __init__(self, path: str | None) -> None:
        self._done: Counter[tuple[str, ...]] = Counter()
        if path is not None and Path(path).exists():
            self._done.update(each.command for each in Journal.read(path) if each.state is State.DONE)

    def did(self, command: Sequence[str]) -> bool:
        """Tell whether this was done; once for each time that it was."""
        # As a journal writes it: the name of a file need not be text.
        words = tuple(word.encode(errors="backslashreplace").decode() for word in command)
        if not self._done[words]:
            return False
        self._done[words] -= 1
        return True


def journal_for(path: str | None) -> dict[str, Any]:
    """Return the manager's option that has it write a journal, which forgets nothing."""
    return {} if path is None else {"journal": Journal(path, keep=sys.maxsize)}


def drop_rest(manager: ProcessManager) -> None:
    """Drop what the manager before has left waiting: it comes again with its input."""
    for task in manager.recovered:
        task.cancel()


MOST: Final = 101
"""Exit code for so many failures and more: those above are taken by the shells and by signals."""


def main(given: argparse.Namespace) -> int:
    """Run the command for each input; return how many failed, `MOST` at the most."""
    command, words = split(given.command)
    template = Template(command, shell=given.shell)
    before = Before(given.resume)
    if given.dry_run:
        return _show(template, given, words)
    with (
        closing(progress_on_stderr()) as progress,
        closing(Outputs(given.log_path, keep_order=given.keep_order, aside=progress.aside)) as outputs,
        session(given, "map", log_path=outputs.folder, rules=_rules(given), **journal_for(given.resume)) as opened,
    ):
        drop_rest(opened.manager)
        work = _Work(given, template, _inputs(given, words, opened.wake), opened, before)
        work.tell = progress.say
        work.ended = outputs.ended
        opened.progress = lambda: str(work.counts)
        while work.tick():
            progress.show(work.counts)
            opened.wait(progress.patience)
            if outputs.broken:
                opened.unread()
    if given.table != "none" and (table := work.rows.table(failed_only=given.table == "failed")):
        print(table, file=sys.stderr)
    progress.say(work.summary)
    return 128 + opened.signal if opened.signal else min(work.rows.failed, MOST)


def _rules(given: argparse.Namespace) -> list[Rule]:
    rules = [Rule(processes=given.processes)]
    if given.max_load is not None:
        rules.append(Rule(processes=1, minimum_processor_load=given.max_load))
    return rules


def _inputs(given: argparse.Namespace, words: list[str] | None, wake: Callable[[], None]) -> Inputs:
    if words is not None:
        return Inputs(words)
    if sys.stdin.isatty():
        print("doorman: inputs are read from the terminal, one a line; Ctrl-D ends them", file=sys.stderr)
    return Inputs.read(sys.stdin.fileno(), b"\0" if given.null else b"\n", wake)


def _show(template: Template, given: argparse.Namespace, words: list[str] | None) -> int:
    """Print the commands as a shell would read them."""
    separator = "\0" if given.null else "\n"
    for number, text in enumerate(words if words is not None else filter(None, sys.stdin.read().split(separator)), 1):
        print(shlex.join(template.filled(text, number)))
    return 0


class _Work:
    """The inputs that were taken, their tasks, and what became of them."""

    def __init__(
        self, given: argparse.Namespace, template: Template, inputs: Inputs, opened: Session, before: Before
    ) -> None:
        self.rows = Rows()
        self.tell: Callable[[str], None] = print
        self.ended: Callable[[int, Task | None], None] = lambda *_: None
        self._given, self._template, self._inputs, self._before = given, template, inputs, before
        self._opened, self._manager = opened, opened.manager
        self._tasks: dict[Task, tuple[int, str]] = {}
        self._halted = False
        self._began = time.monotonic()

    @property
    def counts(self) -> Counts:
        """How far it is."""
        return Counts(self.rows.ran, self._inputs.total, self.rows.failed, len(self._manager.running))

    @property
    def summary(self) -> str:
        """What became of all of it, in a line."""
        rows = self.rows
        words = [f"{rows.done} done", f"{rows.failed} failed"]
        words += [f"{rows.skipped} done before"] if rows.skipped else []
        unknown = self._inputs.total is None
        left = 0 if self._inputs.total is None else self._inputs.total - rows.ran + rows.cancelled
        words += ["some not run"] if unknown else [f"{left} not run or stopped"] if left else []
        return f"{', '.join(words)} in {time.monotonic() - self._began:.1f} s"

    def tick(self) -> bool:
        """Do what can be done now; True while there is more to come."""
        self._obey()
        self._feed()
        self._manager.tick()
        self._collect()
        self._feed()
        return self._manager.busy or not (self._inputs.ended or self._halted)

    def _obey(self) -> None:
        if self._opened.ending:
            self._halted = True
            self._manager.kill() if self._opened.hurry else self._manager.stop()

    def _feed(self) -> None:
        """Take inputs while few wait: who waits costs a look in each tick."""
        while not self._halted and len(self._manager.waiting) < self._given.processes:
            text = self._inputs.take()
            if text is None:
                return
            number = self._inputs.taken
            self._add(number, text)

    def _add(self, number: int, text: str) -> None:
        command = self._template.filled(text, number)
        if self._before.did(command):
            self.ended(number, None)
            self.rows.done_before(number, text)
            return
        task = Task.command(
            command,
            name=text.encode(errors="backslashreplace").decode(),
            handler=self._given.command[0],
            retries=self._given.retries,
            expires_in=self._given.timeout,
            cwd=self._given.cwd,
        )
        self._tasks[task] = number, text
        self._manager.add_task(task)

    def _collect(self) -> None:
        for task in [task for task in self._tasks if task.done()]:
            number, text = self._tasks.pop(task)
            self.ended(number, task)
            # Somebody stopped this one alone: what was asked for is not done.
            alone = task.state is State.CANCELLED and not self._halted
            if self.rows.ended(number, text, task, failed=alone or task.state in FAILURES):
                self._failed(text, task)

    def _failed(self, text: str, task: Task) -> None:
        self.tell(f"{text!r} {task.state}: {ending(task) if task.identity else task.exception()}")
        if self._given.halt == "now":
            self._manager.stop()
        elif self._given.halt == "soon" and not self._halted:
            for waiting in self._manager.waiting:
                self._manager.cancel(waiting)
        self._halted = self._halted or self._given.halt is not None
