"""Config file: what the nearest remit.toml, or [tool.remit] in pyproject.toml, says about locations."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from remit.errors import BadLocation, UnknownOption

__all__ = ["NOTHING", "ConfigFile", "Entry", "nearest_file"]

OWN_FILE: Final = "remit.toml"
PROJECT_FILE: Final = "pyproject.toml"
_REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/?#]*(?=@)")
_SCALARS: Final = (str, int, float, bool)

Entry = Mapping[str, "str | int"]
"""A location as a file states it: ``url``, or ``host`` and ``port``; further keys are options."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What one file says; empty where there is none."""

    path: Path | None = None
    transport: str = ""
    url: str = ""
    locations: Mapping[str, Entry] = field(default_factory=dict)

    def url_of_default(self) -> str:
        """Return the ``url`` with its references to the environment filled in. Raises BadLocation."""
        return _filled(self.url, f"'url' in {self.path}")

    def entry(self, name: str) -> dict[str, str | int]:
        """Return a named location with its references filled in. Raises BadLocation."""
        where = f"location {name!r} in {self.path}"
        return {
            key: _filled(value, where) if isinstance(value, str) else value
            for key, value in self.locations[name].items()
        }


NOTHING: Final = ConfigFile()
"""What is configured where there is no file."""
_read_before: dict[Path, tuple[tuple[int, int], ConfigFile | None]] = {}


def nearest_file(folder: Path) -> ConfigFile:
    """Return the nearest file's content, from this folder upward; it alone counts, and remit.toml goes first.

    Each file is read once, and again when it has changed. Raises BadLocation, UnknownOption.
    """
    for parent in (folder, *folder.parents):
        for name in (OWN_FILE, PROJECT_FILE):
            found = _read_once(parent / name)
            if found is not None:
                return found
    return NOTHING


def _read_once(path: Path) -> ConfigFile | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    version = (status.st_mtime_ns, status.st_size)
    known = _read_before.get(path)
    if known is None or known[0] != version:
        known = _read_before[path] = (version, _read(path))
    return known[1]


def _read(path: Path) -> ConfigFile | None:
    import tomllib  # dear, and many programs have no file to read

    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if path.name == PROJECT_FILE and isinstance(error, OSError):
            return None  # somebody else's, most likely
        raise BadLocation(f"cannot read {path}: {error}") from error
    if path.name == PROJECT_FILE:
        tools = content.get("tool", {})
        if not isinstance(tools, dict) or "remit" not in tools:
            return None  # none of ours
        content = tools["remit"]
    return _checked(content, path)


def _checked(content: Any, path: Path) -> ConfigFile:
    _expect(isinstance(content, dict), f"'tool.remit' in {path} is a table")
    readers: dict[str, Callable[[Any, Path], Any]] = {
        "transport": lambda value, path: _text("transport", value, path),
        "url": lambda value, path: _text("url", value, path),
        "locations": _locations,
    }
    for key in content:
        if key not in readers:
            raise UnknownOption(f"{path} has an unknown key {key!r}{_nearest(key, readers)}")
    return ConfigFile(path, **{key: readers[key](value, path) for key, value in content.items()})


def _locations(value: Any, path: Path) -> dict[str, Entry]:
    _expect(isinstance(value, dict), f"'locations' in {path} is a table of names")
    return {name: _entry(name, each, path) for name, each in value.items()}


def _entry(name: str, value: Any, path: Path) -> Entry:
    where = f"location {name!r} in {path}"
    if isinstance(value, str):
        return {"url": value}
    _expect(isinstance(value, dict), f"{where} is a URL or a table")
    _expect(("url" in value) != ("host" in value), f"{where} has either a 'url', or a 'host' and a 'port'")
    _expect("url" in value or "port" in value, f"{where} has a 'port' besides its 'host'")
    _expect(not ("url" in value and "port" in value), f"{where} has its port in its 'url'")
    _expect(not ("url" in value and "transport" in value), f"{where} has its transport in its 'url'")
    for key, each in value.items():
        _expect(isinstance(each, _SCALARS), f"{key!r} of {where} is a text, a number or true or false")
        if key in ("url", "host", "transport"):
            _expect(isinstance(each, str), f"{key!r} of {where} is a text")
        if key == "port":
            _expect(isinstance(each, int) and not isinstance(each, bool), f"'port' of {where} is a whole number")
    # As the query of a URL has it.
    return {key: each if key == "port" or isinstance(each, str) else str(each).lower() for key, each in value.items()}


def _text(key: str, value: Any, path: Path) -> str:
    _expect(isinstance(value, str) and bool(value.strip()), f"{key!r} in {path} is a text")
    return str(value)


def _expect(fulfilled: bool, rule: str) -> None:
    if not fulfilled:
        raise BadLocation(f"a config file is not as it must be: {rule}")


def _nearest(key: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else f" (known: {', '.join(names)})"


def _filled(text: str, where: str) -> str:
    """Fill in ``${NAME}``. Within a URL's user and password the value is quoted: it may contain any character."""

    def fill(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise BadLocation(f"{where} refers to ${{{match[1]}}}, which is not set; export {match[1]} first")
        return value

    def fill_quoted(part: re.Match[str]) -> str:
        return _REFERENCE.sub(lambda match: quote(fill(match), safe=""), part[0])

    return _REFERENCE.sub(fill, _CREDENTIALS.sub(fill_quoted, text))
