"""Plan: what `doorman up` is to run: read from a Procfile, a doorman.toml, or the table of a pyproject.toml."""

from __future__ import annotations

import difflib
import re
import shlex
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import msgspec

from doorman.errors import BadCommandLine
from doorman.retry import Backoff, Intensity

__all__ = ["Plan", "Program", "plan_of", "read_procfile", "read_table"]


OWN_FILE: Final = "doorman.toml"
PROJECT_FILE: Final = "pyproject.toml"
PROCFILE: Final = "Procfile"
_LINE: Final = re.compile(r"([A-Za-z0-9_][A-Za-z0-9_.-]*)\s*:\s*(\S.*)")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_FOR_A_SHELL: Final = re.compile(r"[$`|&;<>()*?\[\]{}~!#\n]|^\s*\w+=")
"""What means something else to a shell than to a program."""
RESTARTS: Final = ("permanent", "transient", "temporary")


class Program(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """One named program, in one or several processes. Its fields are the keys of its table."""

    command: str | list[str]
    """Words; or a text, which goes to a shell only if it has something for one."""
    restart: str = "permanent"
    """``permanent``: whenever it ends; ``transient``: when it failed; ``temporary``: never."""
    intensity: int = 5
    """Restarts within `period` seconds beyond which it is given up, and everything ends."""
    period: float = 10.0
    backoff: float = 0.1
    """Seconds before the first restart; doubled with each one, up to `max_backoff`."""
    max_backoff: float = 10.0
    processes: int = 1
    env: dict[str, str] = {}
    """Added to the environment."""
    cwd: str | None = None
    """Below the folder of the file."""
    expires: float | None = None
    """Seconds after which a process is stopped."""
    wrapper: list[str] = []
    """A command to start it with, such as ``["nice", "-n", "10"]``."""

    @property
    def comeback(self) -> dict[str, Any]:
        """What its tasks are told of restarts, as the options of `Task`. Raises ValueError."""
        if self.restart == "temporary":
            return {}
        intensity = Intensity(restarts=self.intensity, seconds=self.period)
        backoff = Backoff(first=self.backoff, most=max(self.backoff, self.max_backoff))
        return {"restart": self.restart, "intensity": intensity, "backoff": backoff}

    @property
    def argv(self) -> list[str]:
        """The command as a program and its arguments."""
        return list(self.command) if not isinstance(self.command, str) else _words(self.command)


class Plan(msgspec.Struct, kw_only=True):
    """The programs in the order in which they start, and where the file lies."""

    folder: Path
    programs: dict[str, Program]


def plan_of(file: str | None) -> Plan:
    """Read a file, or the first that is here. Raises BadCommandLine, which tells where and what is wrong."""
    path = Path(file) if file is not None else _first_here()
    read = _document(path) if path.suffix == ".toml" else _text(path)
    try:
        programs = read_procfile(read) if isinstance(read, str) else read_table(_table(read, path.name))
    except BadCommandLine as error:
        raise BadCommandLine(f"{path}: {error}") from error
    return Plan(folder=path.absolute().parent, programs=programs)


def read_procfile(text: str) -> dict[str, Program]:
    """Read lines ``name: command``; empty ones and those that begin with ``#`` say nothing. Raises BadCommandLine."""
    programs: dict[str, Program] = {}
    for number, line in enumerate(text.splitlines(), 1):
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        found = _LINE.fullmatch(line.strip())
        if found is None:
            raise BadCommandLine(f"line {number}: {line.strip()!r} is not 'name: command'")
        if found[1] in programs:
            raise BadCommandLine(f"line {number}: {found[1]!r} is there already: give each line a name of its own")
        programs[found[1]] = Program(command=found[2])
    return _checked(programs)


def read_table(table: Mapping[str, Any]) -> dict[str, Program]:
    """Read a table of tables, one for each program. Raises BadCommandLine."""
    programs = {}
    for name, keys in table.items():
        if not isinstance(keys, dict):
            raise BadCommandLine(f"{name!r} is not a table: write, for example, [{name}] and below it command = '...'")
        unknown = [key for key in keys if key not in Program.__struct_fields__]
        if unknown:
            raise BadCommandLine(_unknown(name, unknown[0]))
        try:
            programs[name] = msgspec.convert(keys, Program)
        except msgspec.ValidationError as error:
            raise BadCommandLine(f"[{name}]: {error}") from error
    return _checked(programs)


def _checked(programs: dict[str, Program]) -> dict[str, Program]:
    if not programs:
        raise BadCommandLine("it names no process: write, for example, a line 'web: python -m http.server'")
    for name, program in programs.items():
        if not _NAME.fullmatch(name):
            raise BadCommandLine(f"{name!r} cannot name a process: use letters, digits, '_', '-' and '.'")
        if program.restart not in RESTARTS:
            raise BadCommandLine(f"[{name}]: restart is {' or '.join(map(repr, RESTARTS))}, not {program.restart!r}")
        if program.expires is not None and not program.expires > 0:
            raise BadCommandLine(f"[{name}]: expires = {program.expires!r} is not a number of seconds above 0")
        if program.processes < 1:
            raise BadCommandLine(f"[{name}]: processes = {program.processes} is too little")
        try:
            program.comeback  # noqa: B018 - raises what is wrong with it
        except ValueError as error:
            raise BadCommandLine(f"[{name}]: {error}") from error
        try:
            if not program.argv:
                raise ValueError("it is empty")
        except ValueError as error:
            raise BadCommandLine(f"[{name}]: cannot read its command {program.command!r}: {error}") from error
    return programs


def _words(command: str) -> list[str]:
    if _FOR_A_SHELL.search(command):
        return ["/bin/sh", "-c", command]
    return shlex.split(command)


def _table(document: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    if name != PROJECT_FILE:
        return document
    tool = _own(document)
    if tool is None:
        raise BadCommandLine("it has no [tool.doorman]: write there a table for each process, as [tool.doorman.web]")
    return tool if isinstance(tool, dict) else {}


def _own(document: Mapping[str, Any]) -> Any:
    """Return what a project's file says to Doorman; None if nothing."""
    tool = document.get("tool")
    return tool.get("doorman") if isinstance(tool, dict) else None


def _document(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_text(path))
    except tomllib.TOMLDecodeError as error:
        raise BadCommandLine(f"{path}: {error}") from error


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadCommandLine(f"cannot read {path}: {reason}; name a Procfile or a TOML file") from error


def _first_here() -> Path:
    own, project, procfile = map(Path, (OWN_FILE, PROJECT_FILE, PROCFILE))
    if own.exists():
        return own
    if project.exists() and _own(_document(project)) is not None:
        return project
    if procfile.exists():
        return procfile
    raise BadCommandLine(
        f"there is no {OWN_FILE}, no [tool.doorman] in {PROJECT_FILE}, and no {PROCFILE} here: name a file"
    )


def _unknown(name: str, key: str) -> str:
    known: Sequence[str] = Program.__struct_fields__
    close = difflib.get_close_matches(key, known, n=1)
    meant = f"did you mean {close[0]!r}?" if close else f"there are {', '.join(known)}"
    return f"[{name}] has no key {key!r}: {meant}"
