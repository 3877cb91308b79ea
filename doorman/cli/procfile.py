"""Programs of `doorman up`, read from a Procfile, a doorman.toml or the [tool.doorman] table of a pyproject.toml."""

from __future__ import annotations

import re
import shlex
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final, get_args

import msgspec

from doorman.errors import BadCommandLine
from doorman.retry import Backoff, Intensity, Restart
from remit.options import check_choice, check_count, check_seconds, suggest

OWN_FILE: Final = "doorman.toml"
PROJECT_FILE: Final = "pyproject.toml"
PROCFILE: Final = "Procfile"
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_LINE: Final = re.compile(rf"({_NAME.pattern})\s*:\s*(\S.*)")
_NEEDS_SHELL: Final = re.compile(r"[$`|&;<>()*?\[\]{}~!#\n]|^\s*\w+=")


class Program(msgspec.Struct, kw_only=True):
    """One named program, which runs as one or more processes. The fields are the keys of its TOML table."""

    command: str | list[str]  # words; or a text, which is run by a shell only if it contains shell syntax
    restart: str = "permanent"
    intensity: int = 5  # restarts within `period` seconds; with one more, all programs stop
    period: float = 10.0
    backoff: float = 0.1  # seconds before the first restart; doubled for each further one
    max_backoff: float = 10.0
    processes: int = 1
    env: dict[str, str] = {}  # added to the environment
    cwd: str | None = None  # relative to the folder of the file
    expires: float | None = None  # seconds after which a process is stopped
    wrapper: list[str] = []  # a command that starts the program, such as ["nice", "-n", "10"]

    def __post_init__(self) -> None:
        check_choice("restart", self.restart, get_args(Restart))
        check_count("processes", self.processes)
        if self.expires is not None:
            check_seconds("expires", self.expires, above_zero=True)
        self.restart_options  # noqa: B018 - raises ValueError
        if not self.argv:
            raise ValueError("the command is empty")

    @property
    def restart_options(self) -> dict[str, Any]:
        """The restart policy as options of `Task`."""
        if self.restart == "temporary":
            return {}
        intensity = Intensity(restarts=self.intensity, seconds=self.period)
        backoff = Backoff(first=self.backoff, most=max(self.backoff, self.max_backoff))
        return {"restart": self.restart, "intensity": intensity, "backoff": backoff}

    @property
    def argv(self) -> list[str]:
        """The command as a list of words."""
        if not isinstance(self.command, str):
            return list(self.command)
        if _NEEDS_SHELL.search(self.command):
            return ["/bin/sh", "-c", self.command]
        try:
            return shlex.split(self.command)
        except ValueError as error:
            raise ValueError(f"cannot read the command {self.command!r}: {error}") from error


class Plan(msgspec.Struct, kw_only=True):
    """The programs in their start order, and the folder of their file."""

    folder: Path
    programs: dict[str, Program]


def load_plan(file: str | None) -> Plan:
    """Read a file; None: the first of the default files that exists. Raises BadCommandLine with the file and fault."""
    path = Path(file) if file is not None else _default_file()
    document = _read_toml(path) if path.suffix == ".toml" else _read_text(path)
    try:
        if isinstance(document, str):
            programs = read_procfile(document)
        else:
            programs = read_table(_project_table(document) if path.name == PROJECT_FILE else document)
    except BadCommandLine as error:
        raise BadCommandLine(f"{path}: {error}") from error
    return Plan(folder=path.absolute().parent, programs=programs)


def read_procfile(text: str) -> dict[str, Program]:
    """Return the programs of lines ``name: command``, without empty lines and comments. Raises BadCommandLine."""
    table: dict[str, dict[str, str]] = {}
    for number, line in enumerate(map(str.strip, text.splitlines()), 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise BadCommandLine(f"line {number}: {line!r} is not 'name: command'")
        if found[1] in table:
            raise BadCommandLine(f"line {number}: {found[1]!r} occurs twice: use a different name on each line")
        table[found[1]] = {"command": found[2]}
    return read_table(table)


def read_table(table: Mapping[str, Any]) -> dict[str, Program]:
    """Return the programs of a table, which has a table for each program. Raises BadCommandLine."""
    if not table:
        raise BadCommandLine("it names no process: write, for example, a line 'web: python -m http.server'")
    programs = {}
    for name, keys in table.items():
        if not _NAME.fullmatch(name):
            raise BadCommandLine(f"{name!r} cannot name a process: use letters, digits, '_', '-' and '.'")
        if not isinstance(keys, dict):
            raise BadCommandLine(f"{name!r} is not a table: write, for example, [{name}] and below it command = '...'")
        for key in keys:
            if key not in Program.__struct_fields__:
                raise BadCommandLine(f"[{name}] has no key {key!r}{suggest(key, Program.__struct_fields__)}")
        try:
            programs[name] = msgspec.convert(keys, Program)
        except msgspec.ValidationError as error:
            raise BadCommandLine(f"[{name}]: {error}") from error
    return programs


def _default_file() -> Path:
    own, project, procfile = map(Path, (OWN_FILE, PROJECT_FILE, PROCFILE))
    if own.exists():
        return own
    if project.exists() and _tool_table(_read_toml(project)) is not None:
        return project
    if procfile.exists():
        return procfile
    raise BadCommandLine(
        f"there is no {OWN_FILE}, no [tool.doorman] in {PROJECT_FILE}, and no {PROCFILE} here: name a file"
    )


def _project_table(document: Mapping[str, Any]) -> Mapping[str, Any]:
    table = _tool_table(document)
    if table is None:
        raise BadCommandLine("it has no [tool.doorman]: write a table for each process there, as [tool.doorman.web]")
    return table if isinstance(table, dict) else {}


def _tool_table(document: Mapping[str, Any]) -> Any:
    tool = document.get("tool")
    return tool.get("doorman") if isinstance(tool, dict) else None


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(_read_text(path))
    except tomllib.TOMLDecodeError as error:
        raise BadCommandLine(f"{path}: {error}") from error


def _read_text(path: Path) -> str:
    try:
        return path.read_text()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadCommandLine(f"cannot read {path}: {reason}; name a Procfile or a TOML file") from error
