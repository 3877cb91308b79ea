"""Location of a server: an immutable URL with options, never a socket."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any, Final
from urllib.parse import parse_qsl, quote, unquote, urlencode, urlsplit

from remit.errors import BadLocation, UnknownOption
from remit.options import read_count, read_flag, read_seconds, read_size, suggest

__all__ = ["Location", "read_count", "read_flag", "read_seconds", "read_size"]

SECRET: Final = "key"
"""Option that is masked like a password."""
HIDDEN: Final = "***"
_BLANK: Final = {"scheme": "", "host": "", "port": None, "path": "", "username": "", "password": "", "options": ()}


@dataclass(frozen=True, slots=True, init=False, repr=False)
class Location:
    """Address of a server: frozen, hashable and picklable.

    ``Location("unix:///run/me/events.sock?linger=2s")`` parses a URL. ``Location("127.0.0.1", 5555)`` names a
    host and a port and leaves the transport to the configuration. ``str`` and ``repr`` mask the password and a
    ``key``; `url` contains them. Raises BadLocation.
    """

    scheme: str
    """URL scheme of the transport; empty if it is left to the configuration."""
    host: str
    port: int | None
    path: str
    username: str
    password: str
    options: tuple[tuple[str, str], ...]
    """Query as sorted pairs of texts; `read` converts the values."""

    def __init__(self, address: str, port: int | None = None, **options: object) -> None:
        if not isinstance(address, str) or not address.strip():
            raise BadLocation(f"a location is a URL or a host, not {address!r}")
        values = _from_url(address, port) if "://" in address else _from_host(address, port)
        self._assign(values, {**dict(values["options"]), **options})

    @property
    def url(self) -> str:
        """The whole URL, with the password and the key."""
        return self._url(quote(self.password, safe=""), self.options)

    def replace(self, **changes: Any) -> Location:
        """Return a copy with some fields changed; ``options`` may be a mapping."""
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        if unknown := changes.keys() - values:
            raise TypeError(f"a location has no {', '.join(sorted(unknown))} (known: {', '.join(values)})")
        values |= changes
        # Not by Location(), which would parse an address.
        copy = object.__new__(Location)
        copy._assign(values, dict(values["options"]))
        return copy

    def read(self, readers: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
        """Return the options that are given, each converted by its reader. Raises UnknownOption, BadLocation."""
        values = {}
        for name, text in self.options:
            if name not in readers:
                raise UnknownOption(f"{self.scheme or 'this location'} has no option {name!r}{suggest(name, readers)}")
            try:
                values[name] = readers[name](text)
            except ValueError as error:
                shown = HIDDEN if name == SECRET else repr(text)
                raise BadLocation(f"option {name}={shown} of {self}: {error}") from error
        return values

    def _assign(self, values: Mapping[str, Any], options: Mapping[str, object]) -> None:
        # object.__setattr__, because the dataclass is frozen.
        for name, value in values.items():
            object.__setattr__(self, name, value)
        object.__setattr__(self, "options", tuple(sorted((name, str(value)) for name, value in options.items())))

    def _url(self, password: str, options: tuple[tuple[str, str], ...]) -> str:
        user = quote(self.username, safe="")
        credentials = f"{user}:{password}@" if self.password else f"{user}@" if user else ""
        host = f"[{self.host}]" if ":" in self.host else self.host
        port = "" if self.port is None else f":{self.port}"
        query = "?" + urlencode(options, safe=HIDDEN) if options else ""
        scheme = f"{self.scheme}://" if self.scheme else ""
        return f"{scheme}{credentials}{host}{port}{quote(self.path)}{query}"

    def __str__(self) -> str:
        shown = tuple((name, HIDDEN if name == SECRET else text) for name, text in self.options)
        return self._url(HIDDEN, shown)

    def __repr__(self) -> str:
        return f"Location({str(self)!r})"


def _from_url(url: str, port: int | None) -> dict[str, Any]:
    try:
        parts = urlsplit(url.strip())
        cut = _password_is_cut(parts.netloc, url)
        own_port = None if cut else parts.port
    except ValueError as error:
        raise BadLocation(f"cannot read {_masked(url)!r} as a location: {error}") from error
    if cut:
        raise BadLocation(f"the password in {_masked(url)!r} needs its '/', '?' and '#' as %2F, %3F and %23")
    if not parts.scheme:
        raise BadLocation(f"{_masked(url)!r} has no scheme: write, for example, unix:///tmp/events.sock")
    if port is not None:
        raise BadLocation(f"a URL and a separate port: write the port into {_masked(url)!r}")
    if parts.fragment:
        raise BadLocation(f"a location has no fragment: write '#' as %23 in {_masked(url)!r}")
    host = parts.hostname or ""
    if host != host.strip():
        raise BadLocation(f"the host in {_masked(url)!r} begins or ends with a space")
    path = unquote(parts.path)
    if "\0" in host + unquote(host) + path:
        raise BadLocation(f"a zero byte in the host or the path of {_masked(url)!r}: leave it out")
    pairs = parse_qsl(parts.query, keep_blank_values=True)
    # Refused, because a dict would silently keep only one of two values.
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
    return _BLANK | {"host": host.strip("[]"), "port": port}


def _password_is_cut(netloc: str, url: str) -> bool:
    # An unquoted '/', '?' or '#' in a password ends the network location too early: "user:se" of "user:se/cret@host".
    if ":" not in netloc or "@" in netloc or netloc.endswith("]"):
        return False
    return not netloc.rpartition(":")[2].isdecimal() and "@" in url


def _masked(url: str) -> str:
    url = re.sub(rf"([?&]{SECRET}=)[^&]*", rf"\g<1>{HIDDEN}", url)
    head, at, tail = url.rpartition("@")
    return f"{head.partition('://')[0]}://{HIDDEN}@{tail}" if at else url
