"""`doorman up`: run the long-running programs of a Procfile or TOML file until all end or a stop is requested."""

from __future__ import annotations

import argparse
import os
import sys
from itertools import cycle
from pathlib import Path
from typing import Final, cast

from doorman.cli.manager_session import ManagerSession, open_manager
from doorman.cli.procfile import Plan, Program, load_environment, load_plan
from doorman.cli.ps import end_text
from doorman.errors import BadCommandLine, RestartedTooOften
from doorman.states import ABNORMAL, State
from doorman.task import Task

COLOURS: Final = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)  # all but red, which means an error, and black and white
EXIT_FAILED: Final = 1


def main(arguments: argparse.Namespace) -> int:
    """Run the programs until all have ended; return 1 if one failed for good or was restarted too often."""
    plan = load_plan(arguments.file)
    environment = {**os.environ, **load_environment(arguments.env_file, plan.folder)}
    if plan.release is not None:
        print(f"doorman: 'release' is not started; run it once per deployment: {plan.release}", file=sys.stderr)
    with open_manager(arguments, "up", log_path=arguments.log_path) as session:
        programs = _Programs(session, plan, arguments.cwd, environment)
        while programs.tick():
            session.wait()
    session.raise_if_interrupted()
    return EXIT_FAILED if programs.failed else 0


class _ProgramTask(Task):
    """A task that prints each restart, and is not restarted once all programs stop."""

    programs: _Programs

    @property
    def _last_attempt(self) -> bool:
        return super()._last_attempt or self.programs.stopping

    def _retry(self, state: State, error: BaseException | None, delay: float) -> None:
        # Before the call of super, which resets the identity that the text needs.
        self.programs.print_line(self, "stderr", f"({end_text(self, state, error)}; again in {delay:.2g} s)")
        super()._retry(state, error, delay)


class _Programs:
    """The tasks of all programs of a plan, and their ordered stop."""

    def __init__(self, session: ManagerSession, plan: Plan, cwd: str | None, environment: dict[str, str]) -> None:
        self.failed = False
        self.stopping = False
        self._session, self._manager = session, session.manager
        self._folder = plan.folder if cwd is None else Path(cwd)
        self._environment, self._ports = environment, plan.ports(environment)
        names = {name: _process_names(name, program) for name, program in plan.programs.items()}
        processes = [(name, group) for group in names for name in names[group]]
        self._colours = {name: colour for (name, _), colour in zip(processes, cycle(COLOURS), strict=False)}
        self._width = max(map(len, self._colours), default=0)
        try:
            tasks = [
                self._task(name, group, plan.programs[group], names[group].index(name)) for name, group in processes
            ]
        except ValueError as error:
            raise BadCommandLine(str(error)) from error
        self._left = [self._manager.add_task(task) for task in tasks]

    def tick(self) -> bool:
        """Make progress without waiting; return True while a process runs or waits for its restart."""
        self._manager.tick()
        self._report_finished()
        self._stop_in_order()
        return bool(self._left)

    def print_line(self, task: Task, stream: str, line: str) -> None:
        """Print a line of a task, or a remark about the task, after the name of its process."""
        prefix = f"{task.name:{self._width}} |"
        if (sys.stdout if stream == "stdout" else sys.stderr).isatty() and not os.environ.get("NO_COLOR"):
            prefix = f"\x1b[{self._colours[task.name]}m{prefix}\x1b[0m"
        self._session.print_line(stream, f"{prefix} {line}")

    def _task(self, name: str, group: str, program: Program, number: int) -> Task:
        task = _ProgramTask.command(
            program.argv,
            name=name,
            handler=group,
            expires_in=program.expires,
            wrapper=program.wrapper,
            cwd=self._folder / (program.cwd or ""),
            stop_signal=program.signal,
            grace=program.grace,
            # PYTHONUNBUFFERED: otherwise a Python program writes to a pipe in blocks of 8 KiB.
            env={"PYTHONUNBUFFERED": "1", **self._environment, "PORT": str(self._ports[group] + number), **program.env},
            on_output=self.print_line,
            **program.restart_options,
        )
        cast("_ProgramTask", task).programs = self
        return task

    def _report_finished(self) -> None:
        """Print the end of each task that has finished; stop all if one was restarted too often."""
        for task in [task for task in self._left if task.done()]:
            self._left.remove(task)
            error = task.exception()
            given_up = isinstance(error, RestartedTooOften)
            cancelled_early = task.identity is None and task.state is State.CANCELLED
            text = str(task.state) if cancelled_early else end_text(task, task.state, error)
            if given_up:
                ends_well = task.exit_code == 0
                text = f"{'done: 0' if ends_well else text}; given up, and all end: {error}"
                if ends_well:
                    text += '; give a program that ends by itself restart = "transient" or "temporary"'
            self.print_line(task, "stderr", f"({text})")
            # A failure during the stop does not count: programs may fail because others have stopped already.
            self.failed = self.failed or (task.state in ABNORMAL and not self.stopping)
            self.stopping = self.stopping or given_up

    def _stop_in_order(self) -> None:
        """After a stop request, stop the last program that still runs; after a second signal, kill all."""
        self.stopping = self.stopping or self._session.stopping
        if not self.stopping:
            return
        if self._session.killing:
            self._manager.kill()
        # Later programs may depend on earlier ones, so the last ones end first.
        for task in [task for task in self._left if task.handler == self._left[-1].handler]:
            self._manager.cancel(task)


def _process_names(name: str, program: Program) -> list[str]:
    return [name] if program.processes == 1 else [f"{name}.{number}" for number in range(1, program.processes + 1)]
