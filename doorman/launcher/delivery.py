"""Delivery: how an order reaches a worker that is a program of its own: by descriptor, never by argv or environment."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import msgspec

from doorman.launcher import Order, wire

__all__ = ["interpreter_flags", "packed", "take_order"]

_MAGIC = b"doorman1"
_LENGTH = 8  # bytes
_Content = tuple[bytes, list[bytes]]


def packed(order: Order, *, sys_path: list[str] | None = None) -> bytes:
    """Return the bytes by which `take_order` gives the order to a worker."""
    # Absolute, since it may start in another folder; as bytes, since the name of a folder need not be text.
    folders = [os.fsencode(os.path.abspath(folder)) for folder in sys_path or []]  # noqa: PTH100 - keeps links
    content = msgspec.msgpack.encode((wire.encode_order(order), folders))
    return _MAGIC + len(content).to_bytes(_LENGTH, "big") + content


def take_order(descriptor: int = 0) -> Order:
    """Read this worker's order from a descriptor and import from where its manager imports.

    Leaves the descriptor open: its end of file, later, is the end of the manager. Raises EOFError if that comes
    before the order does, `wire.WireError` if something else comes.
    """
    head = _read(descriptor, len(_MAGIC) + _LENGTH)
    if not head.startswith(_MAGIC):
        raise wire.WireError(f"expected an order on descriptor {descriptor}: is something else writing there?")
    content = _read(descriptor, int.from_bytes(head[len(_MAGIC) :], "big"))
    try:
        order, sys_path = msgspec.msgpack.decode(content, type=_Content)
    except ValueError as error:
        raise wire.WireError(f"{len(content)} bytes that are no order: {error}") from error
    sys.path[:] = map(os.fsdecode, sys_path) if sys_path else sys.path
    return wire.decode_order(order)


def interpreter_flags() -> list[str]:
    """Return the flags that give another interpreter this one's settings (``-I``, ``-W``, ``-X`` and so on)."""
    module: Any = subprocess  # The name has an underscore; multiprocessing has relied on it since Python 3.4.
    flags: list[str] = module._args_from_interpreter_flags()
    return flags


def _read(descriptor: int, length: int) -> bytes:
    parts = bytearray()
    while len(parts) < length:
        part = os.read(descriptor, min(length - len(parts), 1 << 20))
        if not part:
            raise EOFError(f"descriptor {descriptor} ended before the order was whole: the manager is gone")
        parts += part
    return bytes(parts)
