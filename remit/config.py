"""Config: which location is meant, and over which transport: argument, then environment, then file, then default."""

from __future__ import annotations

import contextlib
import difflib
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import quote

from remit.errors import BadLocation, LocationError, UnknownLocation, UnknownOption
from remit.location import Location
from remit.plugins import find_transport, installed_transports
from remit.runtime_dirs import fresh_name, fresh_path, has_unix_sockets, shared_path

__all__ = ["EMPTY_FILE", "ConfigFile", "FileEntry", "nearest_file", "private_location", "resolve"]


OWN_FILE: Final = "remit.toml"
PROJECT_FILE: Final = "pyproject.toml"
_REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/?#]*(?=@)")
_SCALARS: Final = (str, int, float, bool)

FileEntry = Mapping[str, "str | int"]
"""A location as a file states it: ``url``, or ``host`` and ``port``; further keys are options."""


@dataclass(frozen=True, slots=True)
class ConfigFile:
    """What one file says; empty where there is none."""

    path: Path | None = None
    transport: str = ""
    url: str = ""
    locations: Mapping[str, FileEntry] = field(default_factory=dict)

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


EMPTY_FILE: Final = ConfigFile()
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
    return EMPTY_FILE


def _read_once(path: Path) -> ConfigFile | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    version = (status.st_mtime_ns, status.st_size)
    known = _read_before.get(path)
    if known is None or known[0] != version:
        known = _read_before[path] = (version, _read_file(path))
    return known[1]


def _read_file(path: Path) -> ConfigFile | None:
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


def _locations(value: Any, path: Path) -> dict[str, FileEntry]:
    _expect(isinstance(value, dict), f"'locations' in {path} is a table of names")
    return {name: _entry(name, each, path) for name, each in value.items()}


def _entry(name: str, value: Any, path: Path) -> FileEntry:
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


DEFAULT_TRANSPORT: Final = "zmq"
"""The transport of a host and a port, where neither the environment nor a file names another."""
LOCAL_SCHEME: Final = "unix"
"""The scheme used where nothing at all is configured."""
URL_VARIABLE: Final = "REMIT_URL"
TRANSPORT_VARIABLE: Final = "REMIT_TRANSPORT"
PREFIX: Final = "prefix"
"""The option by which a transport keeps several users of one backend apart."""
NOWHERE: Final[Mapping[str, Any]] = {"host": "", "port": None, "username": "", "password": ""}
NO_OPTIONS: Final[Mapping[str, object]] = {}
_HOST_AND_PORT: Final = re.compile(r"([^\s/:@?#]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")


def resolve(where: str | Location | None = None, *, default: str | Location | None = None) -> Location:
    """Return the location that is meant, with its scheme.

    ``where`` is a location or its URL; ``"host:port"``, over the configured transport; the name of a location that
    the environment (``REMIT_<NAME>_URL``) or the nearest config file defines; or None: ``REMIT_URL``, the file's
    ``url``, ``default``, or a Unix socket that only this user can reach. Raises LocationError, PluginError.
    """
    if isinstance(where, Location):
        return _with_scheme(where)
    if where is None:
        found = _configured()
        return found or (_local_default() if default is None else resolve(default))
    if not isinstance(where, str):
        raise BadLocation(f"a location is a Location, a URL or a name, not {where!r}")
    return _read(where) or _named(where)


def private_location(hint: str = "private") -> Location:
    """Return a fresh location on this host over the configured transport, for a server and its own children.

    ``hint`` is made part of its name where it has one. Raises LocationError when the configuration does not tell how.
    """
    return _fresh(_configured() or Location(f"{_local_scheme()}://"), hint)


# -- the sources, in their order -------------------------------------------------------------------------------


def _configured() -> Location | None:
    """Return the unnamed location that the environment or the nearest file gives."""
    if url := os.environ.get(URL_VARIABLE):
        return _from(url, URL_VARIABLE)
    file = _file()
    return _from(file.url_of_default(), f"'url' in {file.path}") if file.url else None


def _named(name: str) -> Location:
    if not _NAME.fullmatch(name):
        raise BadLocation(
            f"{name!r} is neither a URL, nor host:port, nor a name; write, for example, unix:///tmp/a.sock"
        )
    variable = _variable(name)
    if url := os.environ.get(variable):
        return _from(url, variable)
    file = _file()
    if name not in file.locations:
        raise UnknownLocation(_unknown(name, file))
    source = f"location {name!r} in {file.path}"
    entry = file.entry(name)
    if "url" in entry:
        return _from(str(entry.pop("url")), source, options=entry)
    host, port, transport = (entry.pop(key, "") for key in ("host", "port", "transport"))
    with _naming(source):
        return _with_scheme(Location(str(host), int(port), **entry), str(transport))


def _from(text: str, source: str, *, options: Mapping[str, object] = NO_OPTIONS) -> Location:
    """Read what a source states. Raises LocationError that names the source and not its secrets."""
    with _naming(source):
        location = _read(text)
        if location is None:
            raise BadLocation("neither a URL nor host:port; write, for example, unix:///tmp/events.sock")
        return location.replace(options={**dict(location.options), **options})


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    try:
        yield
    except LocationError as error:
        raise type(error)(f"{source}: {error}") from error


def _read(text: str) -> Location | None:
    if "://" in text:
        return _with_scheme(Location(text))
    if match := _HOST_AND_PORT.fullmatch(text):
        return _with_scheme(Location(match[1], int(match[2])))
    return None


def _variable(name: str) -> str:
    return f"REMIT_{name.upper().replace('-', '_').replace('.', '_')}_URL"


def _unknown(name: str, file: ConfigFile) -> str:
    defined = re.compile(r"REMIT_(\w+)_URL")
    known = sorted({*file.locations, *(found[1].lower() for each in os.environ if (found := defined.fullmatch(each)))})
    close = difflib.get_close_matches(name, known, n=1)
    meant = f"; did you mean {close[0]!r}?" if close else "."
    return (
        f"no location is named {name!r} (known: {', '.join(known) or 'none'}){meant} Define it as {_variable(name)} in "
        f"the environment, under [locations] in {OWN_FILE}, or under [tool.remit.locations] in {PROJECT_FILE}"
    )


def _file() -> ConfigFile:
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # It was deleted, and no file is above it.
        return EMPTY_FILE
    return nearest_file(folder)


# -- the transport ---------------------------------------------------------------------------------------------


def _chosen_transport() -> str:
    return os.environ.get(TRANSPORT_VARIABLE) or _file().transport


def _with_scheme(location: Location, transport: str = "") -> Location:
    """Return the location over the configured transport, unless it says one itself."""
    if location.scheme:
        return location
    transport = transport or _chosen_transport() or DEFAULT_TRANSPORT
    scheme = transport if transport in _schemes() else f"{transport}+tcp"
    if scheme == transport and not find_transport(scheme).capabilities.crosses_hosts:
        raise BadLocation(f"{scheme!r} has no hosts and ports: give a URL, as {scheme}:///..., instead of {location}")
    return location.replace(scheme=scheme)


def _schemes() -> set[str]:
    return {claim.scheme for claim in installed_transports()}


def _local_scheme() -> str:
    """Return the scheme by which the configured transport reaches the processes of this host."""
    transport = _chosen_transport()
    if not transport:
        return LOCAL_SCHEME if has_unix_sockets() else f"{DEFAULT_TRANSPORT}+tcp"
    backend = transport.partition("+")[0]
    schemes = _schemes()
    choices = (f"{backend}+ipc", transport, f"{backend}+tcp") if has_unix_sockets() else (transport, f"{backend}+tcp")
    return next((each for each in choices if each in schemes), transport)


def _local_default() -> Location:
    scheme = _local_scheme()
    if not _has_files(scheme):
        find_transport(scheme)  # an unknown one has a reason of its own to be told
        raise UnknownLocation(
            f"no location is given, and {scheme!r} has no default one: pass one, set {URL_VARIABLE}, or put 'url' "
            f"into {OWN_FILE} or under [tool.remit] in {PROJECT_FILE}"
        )
    return Location(f"{scheme}://{shared_path()}")


def _has_files(scheme: str) -> bool:
    return scheme == LOCAL_SCHEME or scheme.endswith("+ipc")


def _fresh(base: Location, hint: str) -> Location:
    """Five cases: 1. a socket's file; 2. a carrier with a sibling that has files; 3. TCP; 4. a prefix; 5. a path."""
    backend = base.scheme.partition("+")[0]
    if _has_files(base.scheme):
        return base.replace(path=fresh_path(hint), **NOWHERE)
    if base.scheme.endswith("+tcp"):
        sibling = f"{backend}+ipc"
        if has_unix_sockets() and sibling in _schemes():
            return base.replace(scheme=sibling, path=fresh_path(hint), **NOWHERE)
        return base.replace(host="127.0.0.1", port=0)
    transport = find_transport(base.scheme)
    if PREFIX in transport.options and (base.host or base.path):
        return base.replace(options=dict(base.options) | {PREFIX: fresh_name(hint)})
    if base.path.strip("/") and not base.host and transport.capabilities.crosses_processes:
        return base.replace(path=f"{base.path.rstrip('/')}-{fresh_name(hint)}")
    raise UnknownLocation(
        f"{base.scheme!r} gives no private location by itself: pass one that child processes can reach, "
        f"or set {URL_VARIABLE} to one"
    )
