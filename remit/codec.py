"""Encoding of events as MessagePack or JSON, and the check that the receiver can decode what was encoded."""

from __future__ import annotations

import dataclasses
import datetime
import itertools
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, Final, Protocol

import msgspec

from remit.errors import CodecError
from remit.event import Event

__all__ = ["JSON", "MAX_NESTING", "Codec", "MessagePack"]

UNDECODABLE: Final = "remit.undecodable"
"""Name of the substitute for an event that could not be decoded. It is never sent."""
MAX_NESTING: Final = 128
"""Most lists, dicts and other containers within each other in an argument. Both ends decode that on any usual stack."""
# All other types, containers too, are checked after encoding.
SCALARS: Final = frozenset({type(None), bool, int, float, str, bytes})
"""Exact types that each codec decodes as they were."""
_TEXT: Final = frozenset({str})
_CONTAINERS: Final = frozenset({list, tuple, dict})


# gc=False: messages hold decoded plain values, which form no cycles, and bursts of them would trigger collections.
class EventMessage(msgspec.Struct, array_like=True, gc=False):
    """An event as transmitted: an array of two to four elements."""

    name: str
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = {}
    headers: dict[str, Any] = {}
    no_args: ClassVar[tuple[()]] = ()

    def event(self, **more: Any) -> Event:
        """Return the event that a listener receives."""
        return Event(self.name, self.args, self.kwargs, self.headers, **more)


class _TooDeep(ValueError):
    """A value is nested deeper than `MAX_NESTING`."""


# Exceptions of msgspec for invalid bytes. Some of them, and those of `_extension`, are not subclasses of its own error.
DECODE_ERRORS: Final = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
ENCODE_ERRORS: Final = (*DECODE_ERRORS, TypeError, ValueError, OverflowError, AttributeError, BufferError)

_TWO_EQUAL_KEYS: Final = "two keys of this dict are equal when they arrive; use keys of one type"

_DATETIME: Final = 1
"""Type of the MessagePack extension for an aware datetime that is not in UTC: its ISO 8601 text."""
_KEPT: Final = (bytes, bytearray, memoryview, datetime.datetime)
_TIMESTAMP: Final = re.compile(rb"[\xd6\xd7]\xff|\xc7\x0c\xff")
_TIME_OF_DAY: Final = re.compile(rb"\d\d:\d\d:\d\d(?:\.\d+)?(?:[+-]\d\d:\d\d|Z)\"")
_NO_CONTAINER: Final = bytes((*range(0x80), *range(0xA0, 0xDC), *range(0xE0, 0x100)))
"""Bytes that are not the header of a MessagePack map or array."""


def _plain(value: Any) -> Any:
    """Return an object of a type that msgspec does not encode as one that it does. Raises TypeError."""
    if type(value) not in SCALARS:
        for base, convert in _EXACT:
            if isinstance(value, base):
                return convert(value)
        # Scalars of numpy and of its like.
        kind = getattr(getattr(value, "dtype", None), "kind", None)
        if isinstance(kind, str) and kind in "biufSU" and getattr(value, "shape", None) == ():
            item = value.item()
            if type(item) in SCALARS:
                return item
    raise TypeError(f"an object of type {type(value).__module__}.{type(value).__qualname__} cannot be sent")


# Unbound methods of the base class: they ignore what a subclass overrides, and return exactly the base class.
_EXACT: Final[Sequence[tuple[type, Callable[[Any], Any]]]] = (
    (str, str.__str__),
    (int, int.__int__),
    (float, float.__float__),
    (bytes, lambda value: bytes.__getitem__(value, slice(None))),
)


def _hint(value: object) -> str:
    if isinstance(value, msgspec.Raw | msgspec.msgpack.Ext):
        return "; decode it first"
    if hasattr(value, "dtype"):
        return "; use .item() of a scalar, .tolist() of an array"
    return "; use plain values, dataclasses or msgspec structs"


def _extension(code: int, data: memoryview) -> Any:
    """Return the value of a MessagePack extension. Raises ValueError."""
    if code == _DATETIME:
        return datetime.datetime.fromisoformat(str(data, "ascii"))
    return msgspec.msgpack.Ext(code, bytes(data))


def _checked_extension(code: int, data: memoryview) -> msgspec.msgpack.Ext:
    """Return an extension as it is. Raises ValueError if its value would not have the same encoding."""
    extension = msgspec.msgpack.Ext(code, bytes(data))
    if code == _DATETIME and _extension(code, data).isoformat().encode() != extension.data:
        raise ValueError("Python cannot parse the offset of this datetime")
    return extension


def _is_flat(value: Any) -> bool:
    """Return whether a value is a scalar, a list of scalars, or a dict from text to scalars, all of exact types."""
    kind = type(value)
    if kind is dict:
        if not _TEXT.issuperset(map(type, value)):
            return False
        value = value.values()
    elif kind is not list and kind is not tuple:
        return kind in SCALARS
    return SCALARS.issuperset(map(type, value))


def _usual(depth: int) -> Any:
    """Return the type of plain values with text as keys, in up to ``depth`` containers."""
    # Without bytes: msgspec allows them in no union with text.
    scalars: Any = None | bool | int | float | str
    kind = scalars
    for _ in range(depth):
        kind = scalars | list[kind] | dict[str, kind]  # type: ignore[valid-type]
    return kind


def _check_nesting(value: Any) -> None:
    """Raise _TooDeep if containers are nested deeper than `MAX_NESTING`. ``value`` has been decoded."""
    level = [value]
    # Two more for the event itself and its arguments.
    for _ in range(MAX_NESTING + 2):
        level = [
            inner
            for each in level
            for inner in ((*each, *each.values()) if type(each) is dict else each)
            if type(inner) in _CONTAINERS
        ]
        if not level:
            return
    raise _TooDeep


def _has_fields(value: Any) -> bool:
    kind = type(value)
    return dataclasses.is_dataclass(kind) or isinstance(value, msgspec.Struct) or hasattr(kind, "__attrs_attrs__")


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    """Yield path and value of each direct part of a value."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield f"[{shortened(key)}]", inner
    elif isinstance(value, list | tuple | set | frozenset):
        for number, inner in enumerate(value):
            yield f"[{number}]", inner
    elif _has_fields(value):
        kind: Any = type(value)
        names = getattr(kind, "__struct_fields__", None) or [
            field.name for field in getattr(kind, "__attrs_attrs__", None) or dataclasses.fields(kind)
        ]
        for name in names:
            if hasattr(value, name):
                yield f".{name}", getattr(value, name)


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
    """Base of the codecs of msgspec, whose encoder and decoder are reused.

    `encode` accepts a value only if it decodes again. Arguments of scalar types need no check, which is why small
    events cost nothing more. Others are decoded and encoded once more, in C: a difference shows what would not arrive.
    """

    name: str
    _format: str
    _encode: Callable[[Any], bytes]
    _decode: Callable[[bytes | memoryview], list[EventMessage]]
    _decode_plain: Callable[[bytes], Any]
    _needs_conversion: Callable[[bytes], bool]
    """Whether encoded data may contain values that `_convert` changes or rejects."""
    _count_containers: Callable[[bytes], int]
    """Returns an upper bound of the containers in encoded data."""

    def encode(self, name: str, args: Sequence[Any], kwargs: Mapping[str, Any], headers: Mapping[str, Any]) -> bytes:
        if not isinstance(name, str):
            raise invalid_name_error(name)
        if kwargs or headers:
            # Empty trailing elements are omitted: most events have only arguments, and each byte counts per event.
            event: tuple[Any, ...] = (name, args, kwargs, headers) if headers else (name, args, kwargs)
            values: Iterable[Any] = itertools.chain(args, kwargs.values(), headers.values())
        else:
            event, values = (name, args), args
        for value in values:
            if type(value) not in SCALARS:
                return self._encode_containers(event)
        try:
            return self._encode(event)
        except ENCODE_ERRORS:
            return self._convert_and_encode(event)

    def _encode_containers(self, event: tuple[Any, ...]) -> bytes:
        """Return an encoded event, checked by its types, or by decoding it. Raises CodecError."""
        try:
            data = self._encode(event)
            # The first check is the fastest for ordinary events, the second one for flat events with bytes.
            if self._is_usual(data) or all(
                map(_is_flat, itertools.chain(event[1], *(each.values() for each in event[2:])))
            ):
                return data
            if not self._needs_conversion(data) and self._decodes_equally(data):
                return data
        except ENCODE_ERRORS:
            pass  # `_convert_and_encode` finds the reason and its place.
        return self._convert_and_encode(event)

    def decode(self, body: bytes | memoryview) -> list[EventMessage]:
        try:
            return self._decode(body)
        except ENCODE_ERRORS as error:
            raise CodecError(f"not a {self._format} list of events: {error}") from error

    def _is_usual(self, _: bytes) -> bool:
        """Return True for data that is known to decode equally and to need no conversion; False may be wrong."""
        return False

    def _convert(self, value: Any) -> Any:
        """Return a value that this codec encodes without loss in place of ``value``. Raises ValueError."""
        return value

    def _decodes_equally(self, data: bytes) -> bool:
        """Return whether decoded data encodes to the same bytes. Raises _TooDeep, and what the decoder raises."""
        decoded = self._decode_plain(data)
        if len(data) > MAX_NESTING and self._count_containers(data) > MAX_NESTING:
            _check_nesting(decoded)
        return self._encode(decoded) == data

    def _convert_and_encode(self, event: tuple[Any, ...]) -> bytes:
        """Return an encoded event with converted values. Raises CodecError, which names the place of the value."""
        try:
            # Not str(), which for a member of an enum of texts returns the name of the member.
            data = self._encode((str.__str__(event[0]), *map(self._convert, event[1:])))
            if self._decodes_equally(data):
                return data
            error: Exception = ValueError(_TWO_EQUAL_KEYS)
        except ENCODE_ERRORS as failure:
            error = failure
        parts = zip(("args", "kwargs", "headers"), event[1:], strict=False)
        children = [(part + where, value) for part, values in parts for where, value in _children(values)]
        raise CodecError(f"cannot encode event {shortened(event[0])}: {self._explain(children, error)}") from error

    def _error_of(self, value: Any) -> Exception | None:
        """Return why a value does not arrive, or None if it does."""
        try:
            # As an argument of an event, which adds the same depth.
            if self._decodes_equally(self._encode(("", (self._convert(value),)))):
                return None
        except ENCODE_ERRORS as error:
            return error
        return ValueError(_TWO_EQUAL_KEYS)

    def _explain(self, children: Iterable[tuple[str, Any]], error: Exception) -> str:
        """Return path and reason of the smallest part of a value that does not arrive, given the parts of the value."""
        path = reason = ""
        value: Any = None
        while not reason:
            errors = ((where, child, self._error_of(child)) for where, child in children)
            where, child, inner = next((each for each in errors if each[2] is not None), ("", None, None))
            if inner is None:
                return f"{_shortened_path(path)}: {error}{_hint(value)}" if path else str(error)
            path, value, error, children = path + where, child, inner, _children(child)
            if isinstance(error, _TooDeep | RecursionError):
                reason = f"nested deeper than {MAX_NESTING} levels; send the parts as events of their own"
            for key in value if isinstance(value, dict) and not reason else ():
                if self._error_of({key: None}) is not None:
                    path += f"[{shortened(key)}]"
                    kind = type(key).__qualname__
                    reason = (
                        f"a key of type {kind} cannot be sent with codec {self.name!r}; use text or numbers as keys"
                    )
                    break
        return f"{_shortened_path(path)}: {reason}"


class MessagePack(_MsgspecCodec):
    """MessagePack, the default. In addition to the types of JSON: bytes, aware datetimes, and keys of any type."""

    name = "msgpack"
    _format = "MessagePack"
    _encode = msgspec.msgpack.Encoder(enc_hook=_plain).encode
    _decode = msgspec.msgpack.Decoder(list[EventMessage], ext_hook=_extension).decode
    _decode_plain = msgspec.msgpack.Decoder(ext_hook=_checked_extension).decode
    _decode_usual: Callable[[bytes], Any] = msgspec.msgpack.Decoder(_usual(6)).decode

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

    def _needs_conversion(self, data: bytes) -> bool:
        # The timestamp extension of MessagePack has no offset from UTC. 0xFF occurs in no text, so most data needs
        # no search.
        return b"\xff" in data and _TIMESTAMP.search(data) is not None

    def _is_usual(self, data: bytes) -> bool:
        # One pass in C finds other keys than text, extensions and excessive depth, all of which _USUAL excludes.
        try:
            return self._encode(self._decode_usual(data)) == data
        except ENCODE_ERRORS:
            return False

    def _count_containers(self, data: bytes) -> int:
        return len(data.translate(None, _NO_CONTAINER))

    def _convert(self, value: Any) -> Any:
        """Return the value with each aware datetime that is not in UTC as an extension, which keeps its offset."""
        if isinstance(value, datetime.datetime):
            offset = value.utcoffset()
            return msgspec.msgpack.Ext(_DATETIME, value.isoformat().encode()) if offset else value
        if isinstance(value, dict):
            return {key: self._convert(inner) for key, inner in value.items()}
        if isinstance(value, list | tuple | set | frozenset):
            return [self._convert(inner) for inner in value]
        if _has_fields(value):
            return self._convert(msgspec.to_builtins(value, builtin_types=_KEPT, enc_hook=_plain))
        return value


class JSON(_MsgspecCodec):
    """JSON. Bytes are sent as base64 strings, and received as strings."""

    name = "json"
    _format = "JSON"
    _encode = msgspec.json.Encoder(enc_hook=_plain).encode
    _decode = msgspec.json.Decoder(list[EventMessage]).decode
    _decode_plain = msgspec.json.Decoder().decode

    def join(self, head: bytes, events: Sequence[bytes]) -> bytes:
        """Return ``head`` followed by a JSON array of the events."""
        return b"".join((head, b"[", b",".join(events), b"]"))

    def _needs_conversion(self, data: bytes) -> bool:
        return _TIME_OF_DAY.search(data) is not None

    def _count_containers(self, data: bytes) -> int:
        return data.count(b"[") + data.count(b"{")

    def _convert(self, value: Any) -> Any:
        """Return the value. Raises ValueError for a time whose offset has seconds, which JSON text would round."""
        if isinstance(value, datetime.datetime | datetime.time):
            offset = value.utcoffset()
            if offset is not None and offset % datetime.timedelta(minutes=1):
                raise ValueError(f"the offset {offset} is no whole minute; use .astimezone(datetime.UTC)")
        else:
            for inner in (*(value if isinstance(value, dict) else ()), *(inner for _, inner in _children(value))):
                self._convert(inner)
        return value


# Codecs have no state, so threads share them.
CODECS: Final[Mapping[str, Codec]] = {codec.name: codec for codec in (MessagePack(), JSON())}


def errors_of(codec: Codec) -> type[Exception]:
    """Return the class of what decoding may raise. A signal handler has raised any other exception."""
    return CodecError if isinstance(codec, _MsgspecCodec) else Exception


def scalars_encoder(codec: Codec) -> Callable[[tuple[str, tuple[Any, ...]]], bytes | None]:
    """Return what encodes a name and arguments of types `SCALARS`, in C, or returns None. It raises `ENCODE_ERRORS`."""
    return codec._encode if type(codec) in (MessagePack, JSON) else lambda _: None  # type: ignore[attr-defined]


def decode_event(codec: Codec, data: bytes) -> EventMessage:
    """Return the event of `Codec.encode`. Raises CodecError."""
    try:
        messages = codec.decode(codec.join(b"", [data]))
    except errors_of(codec) as error:
        raise (
            error if isinstance(error, CodecError) else CodecError(f"codec {codec.name!r} failed: {error!r}")
        ) from error
    if len(messages) != 1:
        raise CodecError(f"{len(messages)} events instead of one in an event")
    return messages[0]


def decode_each(codec: Codec, body: memoryview, lengths: Sequence[int | None], error: Exception) -> list[EventMessage]:
    """Return the events of a body that cannot be decoded as a whole because of ``error``.

    An undecodable event is replaced by one with the name UNDECODABLE, and as arguments the name of the event, its
    first argument and the reason, as far as they can be read.
    """
    if isinstance(error.__cause__ or error, RecursionError):
        # The caller's stack is too deep for events that another stack can decode.
        events: list[EventMessage] = []
        thread = threading.Thread(target=lambda: events.extend(_decode_each(codec, body, lengths)), daemon=True)
        thread.start()
        thread.join()
        return events
    return _decode_each(codec, body, lengths)


def _decode_each(codec: Codec, body: memoryview, lengths: Sequence[int | None]) -> list[EventMessage]:
    events = []
    gaps = codec.join(b"", [_MARK] * len(lengths)).split(_MARK)
    at = 0
    for gap, length in zip(gaps, lengths, strict=False):
        at += len(gap)
        end = len(body) - len(gaps[-1]) if length is None else at + length
        data = bytes(body[at:end])
        at = end
        try:
            events.append(decode_event(codec, data))
        except CodecError as error:
            name, first = _read_beginning(codec, data)
            events.append(EventMessage(UNDECODABLE, (name, first, str(error))))
    return events


def _read_beginning(codec: Codec, data: bytes) -> tuple[str, Any]:
    """Return name and first argument of an undecodable event as far as they can be read."""
    module = msgspec.json if codec.name == JSON.name else msgspec.msgpack
    try:
        beginning = module.decode(data, type=_Beginning)
    except ENCODE_ERRORS:
        name = _PRINTABLE.search(data)
        return (name.group().decode() if name else ""), None
    try:
        return beginning.name, module.decode(beginning.args[0])
    except (*ENCODE_ERRORS, IndexError):
        return beginning.name, None


class _Beginning(msgspec.Struct, array_like=True):
    name: str
    args: list[msgspec.Raw] = []


_MARK: Final = b"<event>"
_PRINTABLE: Final = re.compile(rb"[\w.:/-]{2,80}")


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
    try:
        text = repr(name)
    except Exception:  # noqa: BLE001 - an error message about a value must not fail because of the value
        text = f"<{type(name).__qualname__}>"
    return text if len(text) <= 80 else f"{text[:80]}..."


def printable(text: str) -> str:
    """Return a text without lone surrogates, which no codec and hardly a log file can store."""
    return text.encode(errors="backslashreplace").decode()


def _shortened_path(path: str) -> str:
    """Return the path of a value for an error message, its beginning and its end if it is long."""
    return path if len(path) <= 200 else f"{path[:90]}...{path[-100:]}"


def invalid_name_error(name: object) -> TypeError:
    """Return the error for an event name that is not a string."""
    # Raised before encoding: the receiver could not decode the frame, and the other events in it would be lost.
    return TypeError(f"name of an event must be a string, not {shortened(name)}")
