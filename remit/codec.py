"""Encoding of events as MessagePack or JSON."""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

import msgspec

from remit.errors import CodecError
from remit.event import Event

__all__ = ["JSON", "Codec", "MessagePack"]


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
    """Encodes each event on its own, and joins encoded events into the body of a frame."""

    name: str
    """Name by which HELLO announces the codec to the server."""

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        """Return one encoded event. Raises CodecError, and TypeError if the name is not a string."""

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by the encoded events."""

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        """Return the events of a body. Raises CodecError."""


class _MsgspecCodec:
    """Base of the codecs of msgspec, whose encoder and decoder are reused."""

    _format: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes | memoryview], list[EventMessage]]

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
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
            raise CodecError(
                f"cannot encode event {shortened(name)}: {error}; use plain values, dataclasses or msgspec structs"
            ) from error

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        try:
            return self._decode(body)
        except DECODE_ERRORS as error:
            raise CodecError(f"not a {self._format} list of events: {error}") from error


class MessagePack(_MsgspecCodec):
    """MessagePack, the default. In addition to the types of JSON: bytes, aware datetimes, and keys of any type."""

    name = "msgpack"
    _format = "MessagePack"
    _encode = msgspec.msgpack.Encoder().encode
    _decode = msgspec.msgpack.Decoder(list[EventMessage]).decode

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by a MessagePack array of the events."""
        # The header of the array is written by hand, because the events are encoded already: the shortest of fixarray,
        # array 16 and array 32.
        count = len(events)
        if count < 16:
            prefix = bytes((0x90 | count,))
        elif count < 65536:
            prefix = struct.pack(">BH", 0xDC, count)
        else:
            prefix = struct.pack(">BI", 0xDD, count)
        return b"".join((head, prefix, *events))


class JSON(_MsgspecCodec):
    """JSON. Bytes are sent as base64 strings, and received as strings."""

    name = "json"
    _format = "JSON"
    _encode = msgspec.json.Encoder().encode
    _decode = msgspec.json.Decoder(list[EventMessage]).decode

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by a JSON array of the events."""
        return b"".join((head, b"[", b",".join(events), b"]"))


# Exceptions of msgspec for invalid bytes. Two of them are not subclasses of its own error.
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
_UNENCODABLE = (TypeError, ValueError, OverflowError, RecursionError, msgspec.MsgspecError)

# Codecs have no state, so threads share them.
CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (MessagePack(), JSON())}


def find_codec(codec: str | Codec) -> Codec:
    """Return the codec of a name, or the codec itself if it is one. Raises CodecError."""
    known = ", ".join(sorted(CODECS))
    if not isinstance(codec, str):
        if not all(callable(getattr(codec, verb, None)) for verb in ("encode", "join", "decode")):
            raise CodecError(f"codec must be a name ({known}) or a remit.codec.Codec, not {codec!r}")
        return codec
    if codec not in CODECS:
        raise CodecError(f"unknown codec {codec!r} (known: {known})")
    return CODECS[codec]


def shortened(name: object) -> str:
    """Return a name for an error message, at most 80 characters of it."""
    text = repr(name)
    return text if len(text) <= 80 else f"{text[:80]}..."


def printable(text: str) -> str:
    """Return a text without lone surrogates, which no codec and hardly a log file can store."""
    return text.encode(errors="backslashreplace").decode()


def invalid_name_error(name: object) -> TypeError:
    """Return the error for an event name that is not a string."""
    # Raised before encoding: the receiver could not decode the frame, and the other events in it would be lost.
    return TypeError(f"name of an event must be a string, not {shortened(name)}")
