"""Location: where a server is reached. A value: a URL and its options, never a socket."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import FrozenInstanceError
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from remit.errors import BadLocation, UnknownOption

__all__ = ["Location", "read_count", "read_flag", "read_seconds", "read_size"]

SECRETS: Final = ("key",)
"""Options that show no more than a password does."""
HIDDEN: Final = "***"
_SECRET_IN_QUERY: Final = re.compile(rf"([?&](?:{'|'.join(SECRETS)})=)[^&]*")
_FIELDS = ("scheme", "host", "port", "path", "username", "password", "options")


class Location:
    """Where a server is reached: frozen, hashable and picklable.

    ``Location("unix:///run/me/events.sock?linger=2s")`` reads a URL. ``Location("127.0.0.1", 5555)`` names a
    host and a port and leaves the transport to the configuration. The password and a ``key`` never show in ``str``
    or ``repr``; `url` has them. Raises BadLocation.
    """

    __slots__ = _FIELDS

    scheme: str
    """The transport's URL scheme; empty while it is left to the configuration."""
    host: str
    port: int | None
    path: str
    username: str
    password: str
    options: tuple[tuple[str, str], ...]
    """The query as sorted pairs of texts; `read` gives them their types."""

    def __init__(self, address: str, port: int | None = None, **options: object) -> None:
        if not isinstance(address, str) or not address.strip():
            raise BadLocation(f"a location is a URL or a host, not {address!r}")
        values = _from_url(address, port) if "://" in address else _from_host(address, port)
        pairs = dict(values.pop("options", ())) | {name: str(value) for name, value in options.items()}
        for field in _FIELDS[:-1]:
            object.__setattr__(self, field, values.get(field, None if field == "port" else ""))
        object.__setattr__(self, "options", tuple(sorted(pairs.items())))

    @property
    def url(self) -> str:
        """The whole URL, with the password and the key."""
        return self._url(quote(self.password, safe=""), self.options)

    def replace(self, **changes: Any) -> Location:
        """Return a copy with some fields changed; ``options`` may be a mapping."""
        copy = object.__new__(Location)
        for field in _FIELDS:
            value = changes.pop(field, getattr(self, field))
            if field == "options" and isinstance(value, Mapping):
                value = tuple(sorted((name, str(text)) for name, text in value.items()))
            object.__setattr__(copy, field, value)
        if changes:
            raise TypeError(f"a location has no {sorted(changes)}")
        return copy

    def read(self, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """Return the options given, each read by its reader. Raises UnknownOption, BadLocation."""
        values = {}
        for name, text in self.options:
            if name not in readers:
                raise UnknownOption(f"{self.scheme or 'this location'} has no option {name!r}{_nearest(name, readers)}")
            try:
                values[name] = readers[name](text)
            except ValueError as error:
                shown = HIDDEN if name in SECRETS else repr(text)
                raise BadLocation(f"option {name}={shown} of {self}: {error}") from error
        return values

    def _url(self, password: str, options: tuple[tuple[str, str], ...]) -> str:
        user = quote(self.username, safe="")
        credentials = f"{user}:{password}@" if self.password else f"{user}@" if user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        query = "?" + urlencode(options, safe=HIDDEN) if options else ""
        scheme = f"{self.scheme}://" if self.scheme else ""
        return f"{scheme}{credentials}{host}{port}{quote(self.path)}{query}"

    def __str__(self) -> str:
        shown = tuple((name, HIDDEN if name in SECRETS else text) for name, text in self.options)
        return self._url(HIDDEN, shown)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Location):
            return NotImplemented
        return self._key() == other._key()

    def __hash__(self) -> int:
        return hash(self._key())

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, self._key()

    def __setattr__(self, name: str, value: object) -> None:
        raise FrozenInstanceError(f"a location cannot be changed; use location.replace({name}=...)")

    def __delattr__(self, name: str) -> None:
        raise FrozenInstanceError(f"a location cannot be changed; use location.replace({name}=...)")

    def _key(self) -> tuple[Any, ...]:
        return tuple(getattr(self, field) for field in _FIELDS)


def _rebuild(*values: Any) -> Location:
    location = object.__new__(Location)
    for field, value in zip(_FIELDS, values, strict=True):
        object.__setattr__(location, field, value)
    return location


def _from_url(url: str, port: int | None) -> dict[str, Any]:
    try:
        parts = urlsplit(url.strip())
        cut = _ends_in_password(parts.netloc, url)
        own_port = None if cut else parts.port
    except ValueError as error:
        raise BadLocation(f"cannot read {_masked(url)!r} as a location: {error}") from error
    if cut:
        raise BadLocation(f"the password in {_masked(url)!r} needs its '/', '?' and '#' as %2F, %3F and %23")
    if not parts.scheme:
        raise BadLocation(f"{_masked(url)!r} has no scheme: write, for example, unix:///tmp/events.sock")
    if port is not None:
        raise BadLocation(f"a port besides a URL: write it into {_masked(url)!r}")
    if parts.fragment:
        raise BadLocation(f"a location has no fragment: write a '#' as %23 in {_masked(url)!r}")
    host = parts.hostname or ""
    if host != host.strip():
        raise BadLocation(f"the host in {_masked(url)!r} begins or ends with a space")
    path = unquote(parts.path)
    if "\0" in host + unquote(host) + path:
        raise BadLocation(f"a zero byte in the host or the path of {_masked(url)!r}: leave it out")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    if len({name for name, _ in pairs}) < len(pairs):
        raise BadLocation(f"an option is given twice in {_masked(url)!r}")
    return {
        "scheme": parts.scheme,
        "host": host,
        "port": own_port,
        "path": path,
        "username": unquote(parts.username or ""),
        "password": unquote(parts.password or ""),
        "options": pairs,
    }


def _from_host(host: str, port: int | None) -> dict[str, Any]:
    if port is None:
        raise BadLocation(f"{host!r} is neither a URL nor a host with a port: write Location({host!r}, 5555)")
    if isinstance(port, bool) or not isinstance(port, int) or not 0 <= port <= 65535:
        raise BadLocation(f"a port is a number from 0 to 65535, not {port!r}")
    if any(character in host for character in "/?#@ \0"):
        raise BadLocation(f"{host!r} is not a host name or an address")
    return {"host": host.strip("[]"), "port": port}


def _ends_in_password(netloc: str, url: str) -> bool:
    """Say whether what should be a port is the beginning of a password, the rest of which comes later."""
    port = netloc.rpartition(":")[2]
    cut = ":" in netloc and "@" not in netloc and not netloc.endswith("]") and not port.isdecimal()
    return cut and "@" in url


def _masked(url: str) -> str:
    url = _SECRET_IN_QUERY.sub(rf"\g<1>{HIDDEN}", url)
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://***@{tail}" if at else url


def _nearest(name: str, known: Iterable[str]) -> str:
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    if close:
        return f"; did you mean {close[0]!r}?"
    return f" (it has: {', '.join(names)})" if names else " (it has none)"


def read_seconds(text: str) -> float:
    """Read ``2``, ``2s``, ``500ms`` or ``1m`` as seconds. Raises ValueError."""
    for unit, factor in (("ms", 0.001), ("s", 1.0), ("m", 60.0), ("", 1.0)):
        if text.endswith(unit):
            try:
                seconds = float(text.removesuffix(unit)) * factor
            except ValueError:
                break
            if not 0 <= seconds < float("inf"):
                break
            return seconds
    raise ValueError(f"not a length of time: {text!r}; write 2s, 500ms or 1m")


def read_size(text: str) -> int:
    """Read ``4096``, ``64KiB`` or ``1MiB`` as bytes. Raises ValueError."""
    for unit, factor in (("KiB", 1 << 10), ("MiB", 1 << 20), ("GiB", 1 << 30), ("B", 1), ("", 1)):
        if text.endswith(unit):
            return read_count(text.removesuffix(unit)) * factor
    raise ValueError(f"not a size: {text!r}")  # pragma: no cover - the last unit is empty


def read_count(text: str) -> int:
    """Read a positive whole number. Raises ValueError."""
    if not (text.isascii() and text.isdecimal()) or int(text) < 1:
        raise ValueError(f"not a positive whole number: {text!r}")
    return int(text)


def read_flag(text: str) -> bool:
    """Read ``true``/``false``, ``yes``/``no``, ``on``/``off`` or ``1``/``0``. Raises ValueError."""
    values = {
        "true": True,
        "yes": True,
        "on": True,
        "1": True,
        "false": False,
        "no": False,
        "off": False,
        "0": False,
    }
    if text.lower() not in values:
        raise ValueError(f"neither true nor false: {text!r}")
    return values[text.lower()]
