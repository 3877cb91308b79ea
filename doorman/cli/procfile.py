"""Programs of `doorman up`, read from a Procfile, a doorman.toml or the [tool.doorman] table of a pyproject.toml."""

from __future__ import annotations

import codecs
import grp
import pwd
import re
import shutil
import signal
import subprocess
import tomllib
from collections.abc import Mapping, Sequence
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
ENV_FILE: Final = ".env"
RELEASE: Final = "release"
BASE_PORT: Final = 5000
PORT_STEP: Final = 100
_NOT_SIMPLE: Final = re.compile(r"[$`|&;<>()*?\[\]{}~!#\n\\]|^\s*\w+=")
_VARIABLE: Final = re.compile(r"(?:export\s+)?([A-Za-z_]\w*)\s*=\s*(.*)", re.ASCII)
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r"}


class Program(msgspec.Struct, kw_only=True):
    """One named program, which runs as one or more processes. The fields are the keys of its TOML table."""

    command: str | list[str]  # words; or a text for /bin/sh
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
    stop_signal: str = "TERM"
    grace: float | None = None  # seconds between the stop signal and KILL; None: those of the command line
    user: str | None = None
    group: str | None = None  # None: the groups of `user`
    umask: str | None = None  # octal digits

    def __post_init__(self) -> None:
        check_choice("restart", self.restart, get_args(Restart))
        check_count("processes", self.processes)
        if self.expires is not None:
            check_seconds("expires", self.expires, above_zero=True)
        if self.grace is not None:
            check_seconds("grace", self.grace)
        if self.umask is not None and not re.fullmatch("0?[0-7]{1,3}", self.umask):
            raise ValueError(f"umask is a text of octal digits, such as '027', not {self.umask!r}")
        self.restart_options  # noqa: B018 - raises ValueError
        self.signal  # noqa: B018 - raises ValueError
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
    def signal(self) -> signal.Signals:
        """The signal that stops a process. Raises ValueError."""
        name = self.stop_signal.upper()
        try:
            return signal.Signals[name if name.startswith("SIG") else f"SIG{name}"]
        except KeyError:
            raise ValueError(f"stop_signal is the name of a signal, such as 'INT', not {self.stop_signal!r}") from None

    @property
    def argv(self) -> list[str]:
        """The command as a list of words. Raises ValueError."""
        words = shell_command(self.command) if isinstance(self.command, str) else list(self.command)
        if words and self.umask is not None:
            words = ["/bin/sh", "-c", f'umask {self.umask}; exec "$@"', "sh", *words]
        return [*self._setpriv(), *words] if words else []

    def _setpriv(self) -> list[str]:
        """Return the command that changes user and group. Raises ValueError."""
        if self.user is None and self.group is None:
            return []
        if shutil.which("setpriv") is None:
            raise ValueError("user and group need the program setpriv: install util-linux, or leave them out")
        words = ["setpriv"]
        try:
            if self.user is not None:
                account = pwd.getpwnam(self.user)
                words += [f"--reuid={account.pw_uid}", "--init-groups"]
            group = account.pw_gid if self.group is None else grp.getgrnam(self.group).gr_gid
        except KeyError as error:
            raise ValueError(f"{error.args[0]}; name a user and a group of this system") from None
        return [*words, f"--regid={group}", *([] if self.user else ["--clear-groups"]), "--"]


def shell_command(text: str) -> list[str]:
    """Return the words that run a command line in a shell; none for an empty one."""
    if not text.strip():
        return []
    checked = subprocess.run(["/bin/sh", "-n", "-c", text], capture_output=True, text=True, check=False)
    if checked.returncode:
        raise ValueError(f"the shell cannot read the command {text!r}: {checked.stderr.strip()}")
    # `exec` saves a process, and signals reach the program itself. Only for a program: a builtin such as `cd` is none.
    first = text.split()[0]
    simple = not _NOT_SIMPLE.search(text) and first != "exec" and shutil.which(first) is not None
    return ["/bin/sh", "-c", f"exec {text}" if simple else text]


class Plan(msgspec.Struct, kw_only=True):
    """The programs in their start order, and the folder of their file."""

    folder: Path
    programs: dict[str, Program]
    release: str | None = None
    """The command of a Procfile that runs once before a deployment, and not here."""

    def ports(self, environment: Mapping[str, str]) -> dict[str, int]:
        """Return the PORT of the first process of each program: from $PORT or 5000 in steps of 100, as foreman."""
        first = environment.get("PORT", "")
        base = int(first) if first.isdecimal() else BASE_PORT
        return {name: base + PORT_STEP * place for place, name in enumerate(self.programs)}


def load_plan(file: str | None) -> Plan:
    """Read a file; None: the first of the default files that exists. Raises BadCommandLine with the file and fault."""
    path = Path(file) if file is not None else _default_file()
    document = _read_toml(path) if path.suffix == ".toml" else _read_text(path)
    release = None
    try:
        if isinstance(document, str):
            lines = read_procfile(document)
            release = lines.pop(RELEASE, {}).get("command")
            programs = read_table(lines)
        else:
            programs = read_table(_project_table(document) if path.name == PROJECT_FILE else document)
    except BadCommandLine as error:
        raise BadCommandLine(f"{path}: {error}") from error
    return Plan(folder=path.absolute().parent, programs=programs, release=release)


def load_environment(files: Sequence[str] | None, folder: Path) -> dict[str, str]:
    """Return the variables of files; None: of `.env` in the folder, if it exists. Raises BadCommandLine."""
    default = folder / ENV_FILE
    paths = [Path(file) for file in files] if files is not None else [default] if default.is_file() else []
    variables: dict[str, str] = {}
    for path in paths:
        try:
            variables |= read_environment(_read_text(path))
        except ValueError as error:
            raise BadCommandLine(f"{path}: {error}" if str(path) not in str(error) else str(error)) from error
    return variables


def read_environment(text: str) -> dict[str, str]:
    """Return the variables of lines ``NAME=value``, with or without quotes. Raises BadCommandLine."""
    variables = {}
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        found = _VARIABLE.fullmatch(line)
        if found is None:
            raise BadCommandLine(f"line {number}: {line!r} is not 'NAME=value'")
        variables[found[1]] = _unquoted(found[2])
    return variables


def _unquoted(value: str) -> str:
    """Return a value without its quotes, or without a comment behind it. In double quotes a backslash escapes."""
    if quoted := re.match(r"'([^']*)'", value):
        return quoted[1]
    if quoted := re.match(r'"((?:[^"\\]|\\.)*)"', value):
        return re.sub(r"\\(.)", lambda found: _ESCAPES.get(found[1], found[1]), quoted[1])
    return re.sub(r"(^|\s+)#.*", "", value)


def read_procfile(text: str) -> dict[str, dict[str, str]]:
    """Return the table of lines ``name: command``, without empty lines and comments. Raises BadCommandLine."""
    table: dict[str, dict[str, str]] = {}
    for number, line in enumerate(map(str.strip, text.split("\n")), 1):
        if not line or line.startswith("#"):
            continue
        found = _LINE.fullmatch(line)
        if found is None:
            raise BadCommandLine(f"line {number}: {line!r} is not 'name: command'")
        if found[1] in table:
            raise BadCommandLine(f"line {number}: {found[1]!r} occurs twice: use a different name on each line")
        table[found[1]] = {"command": found[2]}
    return table


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
        # Not in the encoding of the locale: the file is the same for each user. Editors may write a byte order mark.
        return path.read_bytes().removeprefix(codecs.BOM_UTF8).decode()
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise BadCommandLine(f"cannot read {path}: {reason}; name a Procfile or a TOML file") from error
