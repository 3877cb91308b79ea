"""Envelope: an event inside an event: what requests, jobs and subscriptions carry without opening it.

It travels as bytes among the arguments. A codec that cannot carry bytes makes base64 of them, which `msgspec.convert`
reads as bytes again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from remit.codec import Codec, Wire
from remit.errors import CodecError

__all__ = ["seal", "unseal"]


def seal(codec: Codec, name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bytes:
    """Return an event as one argument of another. Raises CodecError."""
    return codec.encode(name, args, kwargs, {})


def unseal(codec: Codec, sealed: bytes) -> Wire:
    """Return the event. Raises CodecError."""
    wires = codec.decode(codec.join(b"", [sealed]))
    if len(wires) != 1:
        raise CodecError(f"{len(wires)} events in an envelope for one")
    return wires[0]
