"""Sealing: a tag on each frame, which only those who share a key can make, and which is good for one time and place.

Who begins knocks with a number drawn for this once, whoever is there admits with one of its own, and both make of the
two numbers and of their key what they seal with: other keys for each connection, each greeting on it and each
direction. Each sealed frame has a number, and is taken only if that is above all before. This authenticates; it hides
nothing: whoever sees the wire can read what passes.
"""

from __future__ import annotations

import secrets
import struct
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from remit.errors import ProtocolError
from remit.protocol.frames import Kind, head

__all__ = ["OVERHEAD", "Channel", "Secret", "id_of", "read_admit", "read_knock", "read_stranger"]

TAG: Final = 16
"""Bytes of a tag."""
NONCE: Final = 16
"""Bytes of a number drawn for this once."""
IDENTIFIER: Final = 8
"""Bytes of the number by which a channel is named: the first of the client's."""
_SEALED: Final = struct.Struct(f">4s{IDENTIFIER}sQ")
OVERHEAD: Final = _SEALED.size + TAG
"""Bytes by which a sealed frame is longer."""


class Secret:
    """What both ends share. Makes and checks the frames by which a channel begins."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        # Of any length, and never used as it is: what else it may be used for, that tells nothing of this.
        self._key = blake2b(key, digest_size=32, person=b"remit key").digest()

    def knock(self) -> bytes:
        """Return a KNOCK frame, with a fresh number."""
        nonce = secrets.token_bytes(NONCE)
        return head(Kind.KNOCK) + nonce + self._tag(b"remit knock", nonce)

    def heard_knock(self, frame: bytes) -> bytes:
        """Return the number of a KNOCK frame. Raises ProtocolError: it was not made with this key."""
        nonce, tag = read_knock(frame)
        self._expect(tag, b"remit knock", nonce)
        return nonce

    def admit(self, nonce: bytes, own: bytes) -> bytes:
        """Return the ADMIT frame that answers a knock."""
        return head(Kind.ADMIT) + nonce + own + self._tag(b"remit admit", nonce + own)

    def heard_admit(self, frame: bytes) -> tuple[bytes, bytes]:
        """Return both numbers of an ADMIT frame. Raises ProtocolError."""
        nonce, own, tag = read_admit(frame)
        self._expect(tag, b"remit admit", nonce + own)
        return nonce, own

    def stranger(self, identifier: bytes) -> bytes:
        """Return the STRANGER frame about a channel that is not known."""
        return head(Kind.STRANGER) + identifier + self._tag(b"remit stranger", identifier)

    def heard_stranger(self, frame: bytes) -> bytes:
        """Return which channel a STRANGER frame is about. Raises ProtocolError."""
        identifier, tag = read_stranger(frame)
        self._expect(tag, b"remit stranger", identifier)
        return identifier

    def channel(self, nonce: bytes, own: bytes, *, client: bool) -> Channel:
        """Return one end of the channel that two numbers make."""
        material = blake2b(nonce + own, key=self._key, digest_size=64, person=b"remit channel").digest()
        upwards, downwards = material[:32], material[32:]
        return Channel(nonce[:IDENTIFIER], *((upwards, downwards) if client else (downwards, upwards)))

    def _tag(self, purpose: bytes, data: bytes) -> bytes:
        return blake2b(data, key=self._key, digest_size=TAG, person=purpose).digest()

    def _expect(self, tag: bytes, purpose: bytes, data: bytes) -> None:
        if not compare_digest(tag, self._tag(purpose, data)):
            raise ProtocolError("forged", "a frame that was made with another key, or altered on its way")


class Channel:
    """One end of a channel: seals what leaves and opens what comes, with a key for each direction."""

    __slots__ = ("_heard", "_opening", "_sealing", "_sent", "id")

    def __init__(self, identifier: bytes, out: bytes, back: bytes) -> None:
        self.id = identifier
        self._sealing = blake2b(key=out, digest_size=TAG, person=b"remit frame")
        self._opening = blake2b(key=back, digest_size=TAG, person=b"remit frame")
        self._sent = 0
        self._heard = 0

    def seal(self, frame: bytes) -> bytes:
        """Return a frame with the next number and its tag."""
        self._sent += 1
        before = _SEALED.pack(head(Kind.SEALED), self.id, self._sent)
        tag = self._sealing.copy()
        tag.update(before)
        tag.update(frame)
        return b"".join((before, frame, tag.digest()))

    def open(self, frame: bytes) -> bytes:
        """Return the frame within a sealed one. Raises ProtocolError: replayed, forged."""
        _, identifier, number = _SEALED.unpack_from(frame)
        if identifier != self.id:
            raise ProtocolError("stale", "a frame of another channel")
        if number <= self._heard:
            raise ProtocolError("replayed", f"frame {number} came after frame {self._heard}")
        view = memoryview(frame)
        tag = self._opening.copy()
        tag.update(view[:-TAG])
        if not compare_digest(tag.digest(), view[-TAG:]):
            raise ProtocolError("forged", "a frame that was made with another key, or altered on its way")
        self._heard = number
        return bytes(view[_SEALED.size : -TAG])


def id_of(frame: bytes) -> bytes:
    """Return the channel that a SEALED frame says it belongs to. Raises ProtocolError."""
    if len(frame) < OVERHEAD:
        raise ProtocolError("truncated", f"a sealed frame of {len(frame)} bytes")
    identifier: bytes = _SEALED.unpack_from(frame)[1]
    return identifier


def read_knock(frame: bytes) -> tuple[bytes, bytes]:
    """Return number and tag of a KNOCK frame, unchecked. Raises ProtocolError."""
    nonce, tag = _parts(frame, NONCE, TAG)
    return nonce, tag


def read_admit(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Return both numbers and the tag of an ADMIT frame, unchecked. Raises ProtocolError."""
    nonce, own, tag = _parts(frame, NONCE, NONCE, TAG)
    return nonce, own, tag


def read_stranger(frame: bytes) -> tuple[bytes, bytes]:
    """Return channel and tag of a STRANGER frame, unchecked. Raises ProtocolError."""
    identifier, tag = _parts(frame, IDENTIFIER, TAG)
    return identifier, tag


def _parts(frame: bytes, *sizes: int) -> list[bytes]:
    data, parts = frame[4:], []
    if len(data) != sum(sizes):
        raise ProtocolError("truncated", f"a greeting of {len(frame)} bytes")
    for size in sizes:
        parts.append(bytes(data[:size]))
        data = data[size:]
    return parts
