"""Resolution of locations and transports: argument before environment before file before default."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any, Final, TypeAlias
from urllib.parse import quote

import msgspec

from remit.errors import BadLocation, LocationError, UnknownLocation, UnknownOption
from remit.location import Location
from remit.options import nearest, suggest
from remit.plugins import find_transport, installed_transports
from remit.runtime_dirs import fresh_name, runtime_folder

__all__ = ["private_location", "resolve"]

# If neither the environment nor a file names a transport: that of a host and a port, and that of the default location.
DEFAULT_TRANSPORT: Final = "zmq"
LOCAL_SCHEME: Final = "unix"
URL_VARIABLE: Final = "REMIT_URL"
TRANSPORT_VARIABLE: Final = "REMIT_TRANSPORT"
PREFIX: Final = "prefix"
"""Option by which a transport separates several users of one backend."""
_NO_HOST: Final[Mapping[str, Any]] = {"host": "", "port": None, "username": "", "password": ""}
_HOST_AND_PORT: Final = re.compile(r"([^\s/:@?#]+|\[[0-9A-Fa-f:.]+\]):(\d{1,5})")
_NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
_NAMED_VARIABLE: Final = re.compile(r"REMIT_(\w+)_URL")
OWN_FILE: Final = "remit.toml"
PROJECT_FILE: Final = "pyproject.toml"
_REFERENCE: Final = re.compile(r"\$\{(\w+)\}")
_CREDENTIALS: Final = re.compile(r"(?<=://)[^/?#]*(?=@)")

_Text: TypeAlias = Annotated[str, msgspec.Meta(pattern=r"\S")]
_Scalar: TypeAlias = str | int | float | bool
_Entry: TypeAlias = str | dict[str, Any]


class _Content(msgspec.Struct, forbid_unknown_fields=True):
    """Keys of remit.toml, and of [tool.remit] in pyproject.toml."""

    transport: _Text = ""
    url: _Text = ""
    locations: dict[str, Any] = {}
    """Values as in the file. `_read_file` replaces each with the pair that `_read_entry` returns."""


class _Address(msgspec.Struct):
    """Keys of a table in [locations] that are not options of the location."""

    url: str = ""
    host: str = ""
    port: int = 0
    transport: str = ""


_EMPTY: Final = _Content()
_cache: dict[Path, tuple[tuple[int, int], _Content | None]] = {}


def _nearest_file() -> tuple[Path, _Content]:
    """Return the first config file in the working directory or the nearest one above it, or an empty one.

    remit.toml precedes pyproject.toml. Raises BadLocation, UnknownOption.
    """
    try:
        folder = Path.cwd()
    except FileNotFoundError:  # The working directory was deleted.
        return Path(), _EMPTY
    for parent in (folder, *folder.parents):
        for path in (parent / OWN_FILE, parent / PROJECT_FILE):
            if content := _read_cached(path):
                return path, content
    return Path(), _EMPTY


def _read_cached(path: Path) -> _Content | None:
    try:
        status = path.stat()
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    # Each Client and Server resolves its location: a stat() for each directory is cheap, a parse is not.
    version = (status.st_mtime_ns, status.st_size)
    known = _cache.get(path)
    if known is None or known[0] != version:
        known = _cache[path] = (version, _read_file(path))
    return known[1]


def _read_file(path: Path) -> _Content | None:
    import tomllib  # Imported here, because most programs have no file to read.

    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        if path.name == PROJECT_FILE and isinstance(error, OSError):
            return None  # It probably belongs to another user's project.
        raise BadLocation(f"cannot read {path}: {error}") from error
    if path.name == PROJECT_FILE:
        tools = table.get("tool", {})
        if not isinstance(tools, dict) or "remit" not in tools:
            return None
        table = tools["remit"]
    # The locations are converted one by one, because msgspec does not name the key of a dict in its messages.
    content: _Content = _convert(table, _Content, str(path))
    for name, entry in content.locations.items():
        content.locations[name] = _read_entry(entry, f"location {name!r} in {path}")
    return content


def _read_entry(entry: object, where: str) -> tuple[_Address, dict[str, str]]:
    table = _convert(entry, _Entry, where)
    if isinstance(table, str):
        return _Address(url=table), {}
    address = _convert(table, _Address, where)
    names = _Address.__struct_fields__
    extra = [key for key in names if key in table and key != "url"]
    if "url" in table and extra:
        raise BadLocation(f"{where} has both 'url' and {extra[0]!r}; remove one of them")
    if "url" not in table and not {"host", "port"} <= table.keys():
        raise BadLocation(f"{where} needs a 'url', or a 'host' and a 'port'")
    options = {key: _convert(each, _Scalar, f"{key!r} in {where}") for key, each in table.items() if key not in names}
    # As in the query of a URL, where true is a lower-case word.
    return address, {key: each if isinstance(each, str) else str(each).lower() for key, each in options.items()}


# The names of types in the messages of msgspec.
_NUMBERS: Final = {"int": "a whole number", "float": "a number"}
_TOML_WORDS: Final = {"str": "a string", "bool": "true or false", "array": "a list", "object": "a table", **_NUMBERS}


def _convert(value: object, kind: Any, where: str) -> Any:
    """Validate a value by its type. Raises BadLocation, or UnknownOption with the nearest key."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        message, _, place = str(error).partition(" - at `$.")
        if "unknown field" in message:
            key = message.split("`")[1]
            raise UnknownOption(f"{where} has an unknown key {key!r}{suggest(key, kind.__struct_fields__)}") from error

        def in_toml(types: re.Match[str]) -> str:
            return " or ".join(_TOML_WORDS.get(word, word) for word in types[1].split(" | "))

        message = re.sub(r"`([^`]*)`", in_toml, message)
        message = message.replace("Expected", "expected").replace(" matching regex '\\\\S'", " that is not blank")
        raise BadLocation(f"{place[:-1]!r} in {where}: {message}" if place else f"{where}: {message}") from error


def resolve(where: str | Location | None = None, *, default: str | Location | None = None) -> Location:
    """Return the configured location, with its scheme.

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
    return _parse(where) or _named(where)


def private_location(hint: str = "private") -> Location:
    """Return an unused location on this host over the configured transport, for a server and its own child processes.

    ``hint`` becomes part of a path or prefix. Raises LocationError if the configuration gives no such location.
    """
    base = _configured() or Location(f"{_local_scheme()}://")
    # A new path if the backend has a scheme with files; else a free TCP port, a new prefix on the configured backend,
    # or a new path beside the configured one.
    scheme = base.scheme
    if scheme.endswith("+tcp"):
        sibling = scheme.removesuffix("tcp") + "ipc"
        scheme = sibling if sibling in _schemes() else scheme
    if _has_files(scheme):
        return base.replace(scheme=scheme, path=str(runtime_folder() / fresh_name(hint)), **_NO_HOST)
    if scheme.endswith("+tcp"):
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


def _configured() -> Location | None:
    """Return the unnamed location of the environment or the nearest file."""
    if url := os.environ.get(URL_VARIABLE):
        return _parse_source(url, URL_VARIABLE)
    path, content = _nearest_file()
    source = f"'url' in {path}"
    return _parse_source(_fill(content.url, source), source) if content.url else None


def _named(name: str) -> Location:
    if not _NAME.fullmatch(name):
        example = "unix:///tmp/a.sock"
        raise BadLocation(f"{name!r} is neither a URL, nor host:port, nor a name; write, for example, {example}")
    variable = f"REMIT_{name.upper().replace('-', '_').replace('.', '_')}_URL"
    if url := os.environ.get(variable):
        return _parse_source(url, variable)
    path, content = _nearest_file()
    if name not in content.locations:
        defined = (found[1].lower() for each in os.environ if (found := _NAMED_VARIABLE.fullmatch(each)))
        known = sorted({*content.locations, *defined})
        close = nearest(name, known)
        raise UnknownLocation(
            f"no location is named {name!r} (known: {', '.join(known) or 'none'})"
            f"{f'; did you mean {close!r}?' if close else '.'} Define it as {variable} in the environment, "
            f"under [locations] in {OWN_FILE}, or under [tool.remit.locations] in {PROJECT_FILE}"
        )
    source = f"location {name!r} in {path}"
    address, texts = content.locations[name]
    options = {key: _fill(text, source) for key, text in texts.items()}
    if address.url:
        location = _parse_source(_fill(address.url, source), source)
        return location.replace(options=dict(location.options) | options)
    with _naming(source):
        location = Location(_fill(address.host, source), address.port).replace(options=options)
        return _with_scheme(location, _fill(address.transport, source))


def _parse_source(text: str, source: str) -> Location:
    """Parse the text of a source. Raises LocationError that names the source and not its secrets."""
    with _naming(source):
        if location := _parse(text):
            return location
        raise BadLocation("neither a URL nor host:port; write, for example, unix:///tmp/events.sock")


@contextlib.contextmanager
def _naming(source: str) -> Iterator[None]:
    # The text of the source itself is not repeated, since it may contain a password.
    try:
        yield
    except LocationError as error:
        raise type(error)(f"{source}: {error}") from error


def _parse(text: str) -> Location | None:
    if "://" in text:
        return _with_scheme(Location(text))
    if match := _HOST_AND_PORT.fullmatch(text):
        return _with_scheme(Location(match[1], int(match[2])))
    return None


def _fill(text: str, where: str) -> str:
    """Replace each ``${NAME}`` with that environment variable. Raises BadLocation if it is not set."""

    def value(match: re.Match[str]) -> str:
        if match[1] not in os.environ:
            raise BadLocation(f"{where} refers to ${{{match[1]}}}, which is not set; export {match[1]} first")
        return os.environ[match[1]]

    # Within the user and password of a URL a value may contain any character.
    def quoted(credentials: re.Match[str]) -> str:
        return _REFERENCE.sub(lambda match: quote(value(match), safe=""), credentials[0])

    return _REFERENCE.sub(value, _CREDENTIALS.sub(quoted, text))


def _chosen_transport() -> str:
    return os.environ.get(TRANSPORT_VARIABLE) or _nearest_file()[1].transport


def _with_scheme(location: Location, transport: str = "") -> Location:
    """Return the location, over the configured transport if it has no scheme."""
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
    """Return the scheme by which the configured transport connects processes of this host."""
    transport = _chosen_transport()
    if not transport:
        return LOCAL_SCHEME
    backend = transport.partition("+")[0]
    schemes = _schemes()
    return next((each for each in (f"{backend}+ipc", transport, f"{backend}+tcp") if each in schemes), transport)


def _local_default() -> Location:
    scheme = _local_scheme()
    if not _has_files(scheme):
        find_transport(scheme)  # Its error is clearer if the transport is not installed.
        raise UnknownLocation(
            f"no location is given, and {scheme!r} has no default one: pass one, set {URL_VARIABLE}, or put 'url' "
            f"into {OWN_FILE} or under [tool.remit] in {PROJECT_FILE}"
        )
    return Location(f"{scheme}://{runtime_folder() / 'default.sock'}")


def _has_files(scheme: str) -> bool:
    return scheme == LOCAL_SCHEME or scheme.endswith("+ipc")
