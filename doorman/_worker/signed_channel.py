"""Parts: a result on its way in, put together from what the attempt's own process signed."""

from __future__ import annotations

from doorman._worker.outcome import label
from doorman.identity import Credential

__all__ = ["SignedReceiver"]


class SignedReceiver:
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
