"""Wire format of the frames.

Every frame starts with four bytes: ``RM``, the version of the protocol, the kind. The rest depends on the kind::

    EVENTS    generation u32, flags u8, first sequence number u64, count u32, then, if flagged,
              received u64, done u64, then the length of each encoded event if there are several, as u8 or u32,
              and then a body in the codec of the session
    ACK       generation u32, received u64, done u64
    RESUME    generation u32, received u64, done u64       resend all events after received
    PING      generation u32, last u64     last number sent; answered by ACK or RESUME
    CANCEL    generation u32, request u64  the client no longer waits for the reply; its loss is harmless
    IDENTIFY  nothing                      there is no session on this connection: send HELLO
    HELLO, WELCOME, REFUSE, BYE            a MessagePack array of the fields of the classes below

The frames of authenticated links are specified in `remit._protocol.auth`::

    AUTH_REQUEST     client nonce 16 bytes, tag 16 bytes
    AUTH_ACCEPT      client nonce 16 bytes, server nonce 16 bytes, tag 16 bytes
    AUTHENTICATED    channel 8 bytes, counter u64, a complete inner frame, tag 16 bytes
    UNKNOWN_CHANNEL  channel 8 bytes, tag 16 bytes

The generation numbers the connections of a session, so that late frames of an earlier one are recognised.
Integers are big-endian. Sequence numbers start with 1; 0 marks events that are sent at most once.
"""

from __future__ import annotations

import enum
import functools
import struct
from collections.abc import Sequence
from typing import Annotated, Final

import msgspec

from remit.codec import DECODE_ERRORS
from remit.errors import ProtocolError

VERSION: Final = 2
MAGIC: Final = b"RM"


class FrameKind(enum.IntEnum):
    """The fourth byte of a frame."""

    EVENTS = 1
    ACK = 2
    RESUME = 3
    PING = 4
    IDENTIFY = 5
    HELLO = 6
    WELCOME = 7
    REFUSE = 8
    BYE = 9
    CANCEL = 10
    AUTH_REQUEST = 11
    AUTH_ACCEPT = 12
    AUTHENTICATED = 13
    UNKNOWN_CHANNEL = 14


# On CPython 3.11 each access to a member through its class costs 70 ns, and each frame needs more than ten.
EVENTS, ACK, RESUME, PING, IDENTIFY, HELLO, WELCOME, REFUSE, BYE, CANCEL, *_ = FrameKind


_U32 = Annotated[int, msgspec.Meta(ge=0, lt=1 << 32)]
_Number = Annotated[int, msgspec.Meta(ge=0, lt=1 << 62)]
"""A sequence number. The bound leaves room to count on from any valid number without overflow of a u64."""


# The control messages are arrays, and later fields have defaults: a peer may omit them or send more.
class Hello(msgspec.Struct, array_like=True, frozen=True):
    """First frame of the client on each connection."""

    session: bytes
    """16 random bytes, made once per client and process."""
    generation: _U32
    """Number of this connection. A server ignores a HELLO with a smaller one than the last."""
    instance: bytes
    """The server instance that sent the last WELCOME; empty for a new session."""
    oldest: Annotated[int, msgspec.Meta(ge=1, lt=1 << 62)]
    """The first sequence number that is not done."""
    latest: _Number
    """The last sequence number given to an event; ``oldest - 1`` if all are done."""
    received: _Number
    """The last sequence number received from the server."""
    codec: str
    max_frame: _Number
    welcomed_generation: _U32 = 0
    """The last connection with a WELCOME, or 0. The client does not know a session that started after it."""


class Welcome(msgspec.Struct, array_like=True, frozen=True):
    """Answer of the server to `Hello`."""

    instance: bytes
    generation: int
    received: int
    done: int
    fresh: bool
    """Whether the session is new to the client: the numbers of the server start with 1."""
    max_frame: int
    liveness_timeout: float
    """Seconds of silence after which the client may consider the server dead; 0: never."""
    first_generation: int = 1
    """The connection with which the session started at this server; 1 for its first connection."""


class Refuse(msgspec.Struct, array_like=True, frozen=True):
    """The server refuses this session."""

    reason: str
    detail: str
    echo: bytes = b""
    """Copy of the refused AUTH_REQUEST, as proof that the server has received it; empty for other frames."""


class Bye(msgspec.Struct, array_like=True, frozen=True):
    """The client ends its session, or the server this instance."""

    why: str
    generation: int = 0
    """The connection that it ends. A BYE on another connection is late and ignored."""


_Control = Hello | Welcome | Refuse | Bye
_KINDS: Final[dict[type, FrameKind]] = {Hello: HELLO, Welcome: WELCOME, Refuse: REFUSE, Bye: BYE}
_HEADS: Final[dict[FrameKind, bytes]] = {kind: MAGIC + bytes((VERSION, kind)) for kind in FrameKind}

_EVENTS = struct.Struct(">4sIBQI")
_NUMBERS: Final = {ACK: "QQ", RESUME: "QQ", PING: "Q", CANCEL: "Q"}
# Bound once: a partial for each kind costs one look-up for each frame, and the padding skips head and generation.
_packers = {
    kind: functools.partial(struct.Struct(f">4sI{numbers}").pack, _HEADS[kind]) for kind, numbers in _NUMBERS.items()
}
_unpackers = {kind: struct.Struct(f">8x{numbers}") for kind, numbers in _NUMBERS.items()}
_EMBEDDED_ACK = struct.Struct(">QQ")
_EVENTS_START = _HEADS[EVENTS]
_FLAGS = 8
REDELIVERED, ACKNOWLEDGES, _SHORT_LENGTHS, _LONG_LENGTHS = 1, 2, 4, 8
_GENERATION = struct.Struct(">4xI")
EVENTS_HEAD: Final = _EVENTS.size
"""Bytes before the body of an EVENTS frame."""
ACK_BYTES: Final = _EMBEDDED_ACK.size
"""Bytes of an acknowledgement in an EVENTS frame, between its head and its body."""

_encode = msgspec.msgpack.Encoder().encode
_decoders: dict[FrameKind, msgspec.msgpack.Decoder[_Control]] = {
    kind: msgspec.msgpack.Decoder(struct_type) for struct_type, kind in _KINDS.items()
}
_kinds = {head: kind for kind, head in _HEADS.items()}


def kind_of(frame: bytes) -> FrameKind:
    """Return the frame's kind. Raises ProtocolError: garbage, version or kind."""
    kind = _kinds.get(frame[:4])
    if kind is None:
        if frame[:2] != MAGIC or len(frame) < 4:
            raise ProtocolError("garbage", f"{len(frame)} bytes that start with {frame[:4]!r}")
        if frame[2] != VERSION:
            raise ProtocolError("version", f"frame of version {frame[2]}; this end supports version {VERSION}")
        raise ProtocolError("kind", f"unknown kind {frame[3]}")
    return kind


def head(kind: FrameKind) -> bytes:
    """Return the first four bytes of a frame of this kind; IDENTIFY has no others."""
    return _HEADS[kind]


def echo_of(frame: bytes) -> bytes:
    """Return the part of an AUTH_REQUEST that a refusal repeats; empty bytes for other frames."""
    return bytes(frame[2:]) if frame[3:4] == bytes((FrameKind.AUTH_REQUEST,)) else b""


def generation_of(frame: bytes) -> int:
    """Return the generation of a frame. Raises ProtocolError."""
    if len(frame) < _GENERATION.size:
        raise ProtocolError("truncated", "a frame without its generation")
    generation: int = _GENERATION.unpack_from(frame)[0]
    return generation


def head_with_lengths(generation: int, first: int, events: Sequence[bytes]) -> bytes:
    """Return the head of an EVENTS frame, and the lengths of the events if there are several."""
    # The receiver needs the lengths only to separate an event that it cannot decode from the others.
    if len(events) == 1:
        return _EVENTS.pack(_EVENTS_START, generation, 0, first, 1)
    try:
        flags, lengths = _SHORT_LENGTHS, bytes(map(len, events))
    except ValueError:
        flags, lengths = _LONG_LENGTHS, struct.pack(f">{len(events)}I", *map(len, events))
    return _EVENTS.pack(_HEADS[EVENTS], generation, flags, first, len(events)) + lengths


def with_generation(frame: bytes, generation: int, *, redelivered: bool) -> bytes:
    """Return a copy of an EVENTS frame for another connection."""
    head, _, flags, first, count = _EVENTS.unpack_from(frame)
    return _EVENTS.pack(head, generation, flags | redelivered, first, count) + frame[EVENTS_HEAD:]


def read_events(frame: bytes) -> tuple[int, int, int, int]:
    """Return flags, first and count of an EVENTS frame, and where its body begins. Raises ProtocolError."""
    if len(frame) < EVENTS_HEAD:
        raise ProtocolError("truncated", "an EVENTS frame without a head")
    _, _, flags, first, count = _EVENTS.unpack_from(frame)
    body = EVENTS_HEAD
    if flags & ACKNOWLEDGES:
        body += ACK_BYTES
        if len(frame) < body:
            raise ProtocolError("truncated", "an EVENTS frame that ends in its acknowledgement")
    if flags & _SHORT_LENGTHS:
        body += count
    elif flags & _LONG_LENGTHS:
        body += 4 * count
    return flags, first, count, body


def read_lengths(frame: bytes) -> Sequence[int]:
    """Return the lengths of the events in an EVENTS frame; none if it states none. Raises ProtocolError."""
    _, _, count, end = read_events(frame)
    if end + count > len(frame):
        raise ProtocolError("malformed", f"an EVENTS frame of {len(frame)} bytes announces {count} events")
    if frame[_FLAGS] & _LONG_LENGTHS:
        return struct.unpack_from(f">{count}I", frame, end - 4 * count)
    return frame[end - count : end] if frame[_FLAGS] & _SHORT_LENGTHS else ()


def with_ack(frame: bytes, received: int, done: int) -> bytes:
    """Return a copy of an EVENTS frame with an embedded acknowledgement."""
    flags = bytes((frame[_FLAGS] | ACKNOWLEDGES,))
    head = frame[:_FLAGS] + flags + frame[_FLAGS + 1 : EVENTS_HEAD]
    return b"".join((head, _EMBEDDED_ACK.pack(received, done), memoryview(frame)[EVENTS_HEAD:]))


def read_embedded_ack(frame: bytes) -> tuple[int, int]:
    """Return received and done of the acknowledgement in an EVENTS frame with the flag ACKNOWLEDGES."""
    received, done = _EMBEDDED_ACK.unpack_from(frame, EVENTS_HEAD)
    return received, done


def pack_numbers(kind: FrameKind, generation: int, *numbers: int) -> bytes:
    """Return an ACK, RESUME, PING or CANCEL frame."""
    return _packers[kind](generation, *numbers)


def unpack_numbers(kind: FrameKind, frame: bytes) -> tuple[int, ...]:
    """Return the numbers of an ACK, RESUME, PING or CANCEL frame after its generation. Raises ProtocolError."""
    layout = _unpackers[kind]
    if len(frame) != layout.size:
        raise ProtocolError("truncated", f"{kind.name} frame of {len(frame)} bytes, not {layout.size}")
    return layout.unpack(frame)


def pack(control: _Control) -> bytes:
    """Return a HELLO, WELCOME, REFUSE or BYE frame."""
    return _HEADS[_KINDS[type(control)]] + _encode(control)


def unpack(kind: FrameKind, frame: bytes) -> _Control:
    """Return the control message of a frame. Raises ProtocolError."""
    try:
        control: _Control = _decoders[kind].decode(memoryview(frame)[4:])
    except DECODE_ERRORS as error:
        raise ProtocolError("malformed", f"{kind.name}: {error}") from error
    return control
