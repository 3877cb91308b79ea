"""Codec: the step between an event and the bytes that a transport carries."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from remit.errors import CodecError
from remit.event import Event

__all__ = [
    "CODECS",
    "DECODE_ERRORS",
    "JSON",
    "Codec",
    "EventMessage",
    "MessagePack",
    "find_codec",
    "invalid_name_error",
    "shortened",
]


class EventMessage(msgspec.Struct, array_like=True, gc=False):
    """An event as it travels: an array of two to four parts."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    headers: dict[str, Any] = {}

    def event(self, **more: Any) -> Event:
        """Return the event that a user sees."""
        return Event(self.name, self.args, self.kwargs, self.headers, **more)


class Codec(Protocol):
    """How events become bytes. Both ends name theirs when a session begins; each event stands by itself."""

    name: str

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one event as bytes. Raises CodecError, and TypeError for a name that is no text."""
        ...

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` and then all the encoded events as one body."""
        ...

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a body. Raises CodecError."""
        ...


class MessagePack:
    """The default: MessagePack through msgspec. Carries what JSON does, and bytes, moments of a time zone, any keys."""

    name = "msgpack"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[EventMessage]).decode

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one event as MessagePack. Raises CodecError, TypeError."""
        if not isinstance(name, str):
            raise invalid_name_error(name)
        try:
            if headers:
                return self._encode((name, args, kwargs, headers))
            if kwargs:
                return self._encode((name, args, kwargs))
            return self._encode((name, args))
        except _UNENCODABLE as error:
            raise _unencodable(name, error) from error

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head``, a MessagePack array header and the events."""
        count = len(events)
        if count < 16:
            prefix = bytes((0x90 | count,))
        elif count < 65536:
            prefix = struct.pack(">BH", 0xDC, count)
        else:
            prefix = struct.pack(">BI", 0xDD, count)
        return b"".join((head, prefix, *events))

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a MessagePack body. Raises CodecError."""
        try:
            return self._decode(body)
        except DECODE_ERRORS as error:
            raise CodecError(f"not a MessagePack list of events: {error}") from error


class JSON:
    """Readable by anything; bytes travel as base64 texts and stay texts."""

    name = "json"

    def __init__(self) -> None:
        self._encode = msgspec.json.Encoder().encode
        self._decode = msgspec.json.Decoder(list[EventMessage]).decode

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one event as JSON. Raises CodecError, TypeError."""
        if not isinstance(name, str):
            raise invalid_name_error(name)
        try:
            return self._encode((name, args, kwargs, headers) if kwargs or headers else (name, args))
        except _UNENCODABLE as error:
            raise _unencodable(name, error) from error

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` and the events as one JSON array."""
        return b"".join((head, b"[", b",".join(events), b"]"))

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a JSON body. Raises CodecError."""
        try:
            return self._decode(body)
        except DECODE_ERRORS as error:
            raise CodecError(f"not a JSON list of events: {error}") from error


SHOWN: Final = 80
"""Characters of a name that an error shows."""
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What reading a stranger's bytes by msgspec may raise: two of them are not its own."""
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)

CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (MessagePack(), JSON())}
"""The codecs in the box, by name. They hold no state and may be shared between threads."""


def find_codec(codec: str | Codec) -> Codec:
    """Return the codec of that name, or the codec itself. Raises CodecError."""
    if not isinstance(codec, str):
        if not all(callable(getattr(codec, verb, None)) for verb in ("encode", "join", "decode")):
            raise CodecError(f"a codec is a name ({', '.join(sorted(CODECS))}) or a remit.codec.Codec, not {codec!r}")
        return codec
    try:
        return CODECS[codec]
    except KeyError:
        raise CodecError(f"no codec {codec!r} (there are: {', '.join(sorted(CODECS))})") from None


def shortened(name: object) -> str:
    """Return a name as an error shows it."""
    text = repr(name)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."


def invalid_name_error(name: object) -> TypeError:
    """Return the error about what was given as an event's name and is none.

    Encoded all the same, nobody could read it, nor the events that share its frame.
    """
    return TypeError(f"an event's name is a text, not {shortened(name)}")


def _unencodable(name: str, error: Exception) -> CodecError:
    what = f"cannot encode event {shortened(name)}: {error}"
    return CodecError(f"{what}; give plain values, dataclasses or msgspec structs")
