"""Settings: the options of the two ends themselves, from keyword arguments over a location's query to defaults."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from remit._protocol.client_session import HEARTBEAT_INTERVAL_S
from remit._protocol.outbox import WINDOW_EVENTS
from remit._protocol.server_sessions import SESSION_TTL_S
from remit.codec import CODECS
from remit.errors import BadLocation
from remit.location import Location, read_count, read_seconds, read_size

__all__ = ["Options", "check_count", "check_lease_seconds", "check_seconds", "resolve_options"]


POLICIES: Final = ("block", "raise", "drop_oldest", "drop_newest")
DELIVERIES: Final = ("acknowledged", "at_most_once")
COUNTS: Final = ("queue", "queue_bytes", "window")
TIMES: Final = ("emit_timeout", "linger", "request_timeout", "heartbeat", "session_ttl")


def _choice(*known: str) -> Callable[[str], str]:
    def read(text: str) -> str:
        if text not in known:
            raise ValueError(f"not one of {', '.join(known)}: {text!r}")
        return text

    return read


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """What both ends can be told, by keyword or in a location's query."""

    codec: str = "msgpack"
    delivery: str = "acknowledged"
    """``acknowledged``, or ``at_most_once``: not numbered, not resent, lost with its connection."""
    when_full: str = "block"
    """What ``emit`` does when the queue is full: block, raise, drop_oldest or drop_newest."""
    queue: int = 16 * 1024
    """Events that may wait to be sent."""
    queue_bytes: int = 64 * 1024 * 1024
    """Bytes that large events may take up among them."""
    window: int = WINDOW_EVENTS
    """Events that may be under way, sent but not confirmed as handled."""
    emit_timeout: float = 60.0
    """Seconds that ``emit`` blocks on a full queue before it raises EmitTimeout."""
    linger: float = 5.0
    """Seconds that ``close`` waits for what is under way."""
    request_timeout: float = 30.0
    """Seconds within which a request must be answered, unless the request says otherwise."""
    heartbeat: float = HEARTBEAT_INTERVAL_S
    """Seconds of silence after which a client asks whether its server is there."""
    session_ttl: float = SESSION_TTL_S
    """Seconds for which a server keeps the session of a client that has gone."""
    key: bytes | None = field(default=None, repr=False)
    """What both ends share: every frame is signed with it, and none is taken that is not."""


READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "codec": _choice(*sorted(CODECS)),
    "delivery": _choice(*DELIVERIES),
    "when_full": _choice(*POLICIES),
    "queue": read_count,
    "queue_bytes": read_size,
    "window": read_count,
    "emit_timeout": read_seconds,
    "linger": read_seconds,
    "request_timeout": read_seconds,
    "heartbeat": read_seconds,
    "session_ttl": read_seconds,
    "key": str,
    "key_file": str,
}


def resolve_options(
    location: Location, transport_options: Mapping[str, Callable[[str], Any]], given: Mapping[str, Any]
) -> tuple[Options, Location]:
    """Return the settings, and the location with only the transport's own options left.

    ``given`` are keyword arguments; None means "not given". A key is read from its file. Raises
    UnknownOption, BadLocation, ValueError.
    """
    values = location.read({**READERS, **transport_options})
    own = {name: value for name, value in values.items() if name in READERS}
    if given.get("key") is not None or given.get("key_file") is not None:
        own.pop("key", None)
        own.pop("key_file", None)
    own.update({name: value for name, value in given.items() if value is not None})
    own["key"] = _key(own.get("key"), own.pop("key_file", None))
    _check(own)
    if not location.options:
        return Options(**own), location
    rest = {name: text for name, text in location.options if name not in READERS}
    return Options(**own), location.replace(options=rest)


def _key(key: str | bytes | None, file: str | Path | None) -> bytes | None:
    """Return the key that is given, or that a file holds without the white space around it; None: there is none."""
    if key is not None and file is not None:
        raise BadLocation("key and key_file are both given; leave one of them out")
    if file is not None:
        try:
            key = Path(file).read_bytes().strip()
        except OSError as error:
            raise BadLocation(f"key_file cannot be read: {error}; name a file that holds the key") from error
    if key is None:
        return None
    if not isinstance(key, str | bytes):
        raise TypeError(f"a key is bytes or a text, not {type(key).__name__}")
    if not key:
        raise BadLocation("the key is empty: make one, for example by `openssl rand -hex 32`")
    return key.encode() if isinstance(key, str) else bytes(key)


def _check(values: Mapping[str, Any]) -> None:
    for name, known in (("when_full", POLICIES), ("delivery", DELIVERIES)):
        if values.get(name, known[0]) not in known:
            raise ValueError(f"{name} is one of {', '.join(known)}, not {values[name]!r}")
    for name in COUNTS:
        check_count(name, values.get(name, 1))
    for name in TIMES:
        check_seconds(name, values.get(name, 1))
    if values.get("heartbeat", 1) == 0:
        raise ValueError("heartbeat is above 0: a client that asks all the time does nothing else")


def check_count(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless a value is a whole number, at least 1."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} is a whole number, not {value!r}")
    if value < 1:
        raise ValueError(f"{name} is at least 1, not {value!r}")


def check_seconds(name: str, value: object) -> None:
    """Raise TypeError or ValueError unless a value is a finite number of seconds that is not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} is a number of seconds, not {value!r}")
    if not 0 <= value < float("inf"):
        raise ValueError(f"{name} is a number of seconds, finite and not negative, not {value!r}")


def check_lease_seconds(value: object) -> None:
    """Raise TypeError or ValueError unless a value is a lease: seconds, above 0."""
    check_seconds("the lease", value)
    if value == 0:
        raise ValueError("the lease is above 0: within none nobody is heard of")
