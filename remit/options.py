"""Options of clients and servers, and the validators of numbers, sizes and durations that Remit and Doorman use.

An option comes from a keyword argument, a location's query, an environment variable, a config file or a command line.
`read_*` functions parse text from the last four, `check_*` functions validate values from the first.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, TypeVar

from remit._protocol.client_session import HEARTBEAT_INTERVAL_S
from remit._protocol.outbox import WINDOW_EVENTS
from remit._protocol.server_sessions import SESSION_TTL_S
from remit.codec import CODECS
from remit.errors import BadLocation

if TYPE_CHECKING:
    from remit.location import Location

T = TypeVar("T")
QUEUE_BYTES: Final = 64 * 1024 * 1024
"""Default of the most bytes in one queue."""
SECONDS_PER_UNIT: Final = {"ms": 0.001, "s": 1.0, "m": 60.0, "": 1.0}
BYTES_PER_UNIT: Final = {"KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30, "B": 1, "": 1}
FLAGS: Final = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def read_seconds(text: str, *, above_zero: bool = False) -> float:
    """Parse ``2``, ``2s``, ``500ms`` or ``1m`` as seconds. Raises ValueError."""
    unit = next(unit for unit in SECONDS_PER_UNIT if text.endswith(unit))
    try:
        seconds = float(text.removesuffix(unit)) * SECONDS_PER_UNIT[unit]
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf") or (above_zero and not seconds):
        bound = " above 0" if above_zero else ""
        raise ValueError(f"{text!r} is not a number of seconds{bound}; write 2s, 500ms or 1m")
    return seconds


def read_size(text: str) -> int:
    """Parse ``4096``, ``64KiB`` or ``1MiB`` as bytes. Raises ValueError."""
    unit = next(unit for unit in BYTES_PER_UNIT if text.endswith(unit))
    return read_count(text.removesuffix(unit)) * BYTES_PER_UNIT[unit]


def read_count(text: str, *, least: int = 1) -> int:
    """Parse a whole number, at least ``least``. Raises ValueError."""
    # int() also accepts signs, spaces, underscores and the digits of other scripts.
    if not (text.isascii() and text.isdecimal()) or int(text) < least:
        kind = "a positive whole number" if least == 1 else f"a whole number from {least}"
        raise ValueError(f"{text!r} is not {kind}")
    return int(text)


def read_flag(text: str) -> bool:
    """Parse ``true``/``false``, ``yes``/``no``, ``on``/``off`` or ``1``/``0``. Raises ValueError."""
    if text.lower() not in FLAGS:
        raise ValueError(f"{text!r} is neither true nor false")
    return FLAGS[text.lower()]


def read_choice(text: str, *, known: Collection[str]) -> str:
    """Return the text if it is one of those known. Raises ValueError."""
    if text not in known:
        raise ValueError(f"{text!r} is not one of {', '.join(known)}")
    return text


def argument(read: Callable[..., T], **bounds: Any) -> Callable[[str], T]:
    """Return a reader as the ``type`` of an argparse argument, which then reports the reader's own message."""

    def convert(text: str) -> T:
        try:
            return read(text, **bounds)
        except ValueError as error:
            from argparse import ArgumentTypeError  # Imported here, because only command lines need it.

            raise ArgumentTypeError(str(error)) from None

    return convert


def check_count(name: str, value: object, *, least: int = 1, most: int | None = None) -> None:
    """Raise TypeError or ValueError unless a value is a whole number from ``least`` to ``most``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be a whole number, not {value!r}")
    if value < least or (most is not None and value > most):
        bounds = f"at least {least}" if most is None else f"from {least} to {most}"
        raise ValueError(f"{name} must be {bounds}, not {value!r}")


def check_seconds(name: str, value: object, *, above_zero: bool = False) -> None:
    """Raise TypeError or ValueError unless a value is a finite number of seconds, not negative."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"{name} must be a number of seconds, not {value!r}")
    if not 0 <= value < float("inf") or (above_zero and not value):
        bound = "greater than 0" if above_zero else "0 or greater"
        raise ValueError(f"{name} must be a number of seconds, finite and {bound}, not {value!r}")


def check_choice(name: str, value: object, known: Collection[str]) -> None:
    """Raise ValueError unless a value is one of those known."""
    if value not in known:
        raise ValueError(f"{name} must be one of {', '.join(known)}, not {value!r}")


def nearest(name: str, known: Iterable[str]) -> str:
    """Return the known name that is most similar to a misspelt one; empty if none is similar."""
    import difflib  # Imported here, because only an error message needs it.

    return next(iter(difflib.get_close_matches(name, sorted(known), n=1)), "")


def suggest(name: str, known: Iterable[str]) -> str:
    """Return the end of an error message about an unknown name: the nearest known name, or all of them."""
    names = sorted(known)
    close = nearest(name, names)
    return f"; did you mean {close!r}?" if close else f" (known: {', '.join(names) or 'none'})"


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """Options that every client and server has, as keyword arguments and in a location's query."""

    codec: str = "msgpack"
    delivery: str = "acknowledged"
    """``acknowledged``, or ``at_most_once``: events are not numbered or resent, and are lost with the connection."""
    when_full: str = "block"
    """Behaviour of ``emit`` when the queue is full: block, raise, drop_oldest or drop_newest."""
    queue: int = 16 * 1024
    """Events that may wait in the send queue."""
    queue_bytes: int = QUEUE_BYTES
    """Bytes that large events in the send queue may take up: those over ``queue_bytes / queue``."""
    keep_bytes: int = QUEUE_BYTES
    """Bytes of the last values that a server keeps for later subscribers."""
    window: int = WINDOW_EVENTS
    """Events that may be sent but not yet acknowledged as handled."""
    emit_timeout: float = 60.0
    """Seconds that ``emit`` blocks on a full queue before it raises EmitTimeout."""
    linger: float = 5.0
    """Seconds that ``close`` waits for unacknowledged events."""
    request_timeout: float = 30.0
    """Seconds until a request without a timeout of its own raises RequestTimeout."""
    heartbeat: float = HEARTBEAT_INTERVAL_S
    """Seconds of silence after which a client probes its server."""
    session_ttl: float = SESSION_TTL_S
    """Seconds that a server keeps the session of a disconnected client."""
    key: bytes | None = field(default=None, repr=False)
    """Shared key: every frame is signed with it, and unsigned frames are dropped."""


_DELIVERIES: Final = ("acknowledged", "at_most_once")
_POLICIES: Final = ("block", "raise", "drop_oldest", "drop_newest")
_READERS: Final[Mapping[str, Callable[[str], Any]]] = {
    "codec": partial(read_choice, known=sorted(CODECS)),
    "delivery": partial(read_choice, known=_DELIVERIES),
    "when_full": partial(read_choice, known=_POLICIES),
    **dict.fromkeys(("queue", "window"), read_count),
    **dict.fromkeys(("queue_bytes", "keep_bytes"), read_size),
    **dict.fromkeys(("emit_timeout", "linger", "request_timeout", "session_ttl"), read_seconds),
    # With 0, a client would probe its server all the time.
    "heartbeat": partial(read_seconds, above_zero=True),
    **dict.fromkeys(("key", "key_file"), str),
}
# Keyword arguments are checked by these and not by the readers, so that a wrong type raises TypeError. Codecs and keys
# are checked where they are used.
_CHECKS: Final[Mapping[str, Callable[[str, Any], None]]] = {
    "delivery": partial(check_choice, known=_DELIVERIES),
    "when_full": partial(check_choice, known=_POLICIES),
    **dict.fromkeys(("queue", "queue_bytes", "keep_bytes", "window"), check_count),
    **dict.fromkeys(("emit_timeout", "linger", "request_timeout", "session_ttl"), check_seconds),
    "heartbeat": partial(check_seconds, above_zero=True),
}


def resolve_options(
    location: Location, transport_options: Mapping[str, Callable[[str], Any]], given: Mapping[str, Any]
) -> tuple[Options, Location]:
    """Return the options, and the location with only the transport's own options left.

    ``given`` are keyword arguments, which take precedence over the location; None means "not given".
    Raises UnknownOption, BadLocation, TypeError, ValueError.
    """
    values = location.read({**_READERS, **transport_options})
    own = {name: value for name, value in values.items() if name in _READERS}
    arguments = {name: value for name, value in given.items() if value is not None}
    for name in _CHECKS:
        if name in arguments:
            _CHECKS[name](name, arguments[name])
    # An argument replaces either form of the key in the location; only two arguments are a contradiction.
    if arguments.keys() & {"key", "key_file"}:
        own.pop("key", None)
        own.pop("key_file", None)
    own |= arguments
    own["key"] = _read_key(own.get("key"), own.pop("key_file", None))
    if not location.options:
        return Options(**own), location
    rest = {name: text for name, text in location.options if name not in _READERS}
    return Options(**own), location.replace(options=rest)


def _read_key(key: str | bytes | None, file: str | Path | None) -> bytes | None:
    """Return the key that is given or stored in a file, stripped of white space; None if there is neither."""
    if key is not None and file is not None:
        raise BadLocation("key and key_file are both given; remove one of them")
    if file is not None:
        try:
            key = Path(file).read_bytes().strip()
        except OSError as error:
            raise BadLocation(f"key_file cannot be read: {error}; name a file that contains the key") from error
    if key is None:
        return None
    if not isinstance(key, str | bytes):
        raise TypeError(f"key must be bytes or a string, not {type(key).__name__}")
    if not key:
        raise BadLocation("the key is empty: create one, for example with `openssl rand -hex 32`")
    return key.encode() if isinstance(key, str) else bytes(key)
