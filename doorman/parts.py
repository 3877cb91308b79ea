"""Parts: a result on its way: cut into parts that the process signs, put together from those that it signed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from doorman.identity import Credential

__all__ = ["Parts", "label", "signed_parts"]

CHUNK: Final = 256 * 1024
"""Bytes of a result in one event: below what any transport carries."""


def signed_parts(credential: Credential, data: bytes) -> Iterator[tuple[str, int, int, bytes, bytes]]:
    """Yield what travels of a result: ``attempt, number, parts, part, signature``, in order."""
    parts = max(1, -(-len(data) // CHUNK))
    for number in range(parts):
        part = data[number * CHUNK : (number + 1) * CHUNK]
        yield credential.attempt, number, parts, part, credential.sign(label(number, parts) + part)


class Parts:
    """A result on its way in, part by part. Only what the attempt's own process signed is kept."""

    def __init__(self, credential: Credential) -> None:
        self._credential = credential
        self._parts: list[bytes] = []

    def add(self, number: int, parts: int, part: bytes, signature: bytes) -> bytes | None:
        """Keep one part; return the whole once it is there. Raises ValueError for a part that does not belong."""
        if not self._credential.check(label(number, parts) + part, signature):
            raise ValueError("not signed by this attempt's process")
        if number < len(self._parts):
            return None  # heard before, and again after a restart of the wire
        if number > len(self._parts):
            raise ValueError(f"part {number} of {parts} before part {len(self._parts)}")
        self._parts.append(part)
        return b"".join(self._parts) if len(self._parts) == parts else None


def label(number: int, parts: int) -> bytes:
    """Return what is signed along with a part, so that parts cannot be exchanged."""
    return number.to_bytes(4, "big") + parts.to_bytes(4, "big")
