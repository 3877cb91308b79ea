"""Encoding of events as MessagePack or JSON."""

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


# gc=False: messages hold decoded plain values, which form no cycles, and bursts of them would trigger collections.
class EventMessage(msgspec.Struct, array_like=True, gc=False):
    """An event as transmitted: an array of two to four elements."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    headers: dict[str, Any] = {}

    def event(self, **more: Any) -> Event:
        """Return the event that a listener receives."""
        return Event(self.name, self.args, self.kwargs, self.headers, **more)


class Codec(Protocol):
    """Encodes each event on its own, and joins encoded events to the body of a frame. HELLO names the codec."""

    name: str

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one encoded event. Raises CodecError, and TypeError if the name is not a string."""
        ...

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by the encoded events."""
        ...

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a body. Raises CodecError."""
        ...


class MessagePack:
    """MessagePack, the default. In addition to the types of JSON: bytes, aware datetimes, and keys of any type."""

    name = "msgpack"

    def __init__(self) -> None:
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(list[EventMessage]).decode

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one event as MessagePack. Raises CodecError, TypeError."""
        if not isinstance(name, str):
            raise invalid_name_error(name)
        try:
            # Empty trailing elements are omitted: most events have only arguments, and each byte counts per event.
            if headers:
                return self._encode((name, args, kwargs, headers))
            if kwargs:
                return self._encode((name, args, kwargs))
            return self._encode((name, args))
        except _UNENCODABLE as error:
            raise _unencodable(name, error) from error

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by a MessagePack array of the events."""
        # The array header is written by hand, so that the events need not be decoded to be encoded as one array.
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
    """JSON. Bytes are sent as base64 strings, and received as strings."""

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
        """Return ``head`` followed by a JSON array of the events."""
        return b"".join((head, b"[", b",".join(events), b"]"))

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a JSON body. Raises CodecError."""
        try:
            return self._decode(body)
        except DECODE_ERRORS as error:
            raise CodecError(f"not a JSON list of events: {error}") from error


SHOWN_CHARACTERS: Final = 80
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""Exceptions of msgspec for invalid bytes. Two of them are not subclasses of its own error."""
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)

CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (MessagePack(), JSON())}
"""Built-in codecs by name. They have no state and are shared between threads."""


def find_codec(codec: str | Codec) -> Codec:
    """Return the codec of a name, or the codec itself if it is one. Raises CodecError."""
    if not isinstance(codec, str):
        if not all(callable(getattr(codec, verb, None)) for verb in ("encode", "join", "decode")):
            raise CodecError(
                f"codec must be a name ({', '.join(sorted(CODECS))}) or a remit.codec.Codec, not {codec!r}"
            )
        return codec
    try:
        return CODECS[codec]
    except KeyError:
        raise CodecError(f"unknown codec {codec!r} (known: {', '.join(sorted(CODECS))})") from None


def shortened(name: object) -> str:
    """Return a name for an error message, shortened to `SHOWN_CHARACTERS`."""
    text = repr(name)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def invalid_name_error(name: object) -> TypeError:
    """Return the error for an event name that is not a string."""
    # Raised before encoding: the receiver could not decode the frame, and the other events in it would be lost.
    return TypeError(f"name of an event must be a string, not {shortened(name)}")


def _unencodable(name: str, error: Exception) -> CodecError:
    return CodecError(
        f"cannot encode event {shortened(name)}: {error}; use plain values, dataclasses or msgspec structs"
    )
