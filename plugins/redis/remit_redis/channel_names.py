"""Names: the step from a location to the key and the channels on which its two ends meet."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import Final, TypeAlias

__all__ = ["FRAME", "JOIN", "LEAVE", "TOKEN", "Names", "Route", "is_token", "mint"]


FRAME, JOIN, LEAVE = b"F", b"J", b"L"
"""What a message in the server's channel is; the sender's token and, for a frame, its bytes follow."""
TOKEN: Final = 16
"""Bytes of a token, in hexadecimal digits."""

Route: TypeAlias = tuple[bytes, bytes]
"""A channel, and what goes before each frame in it."""


@dataclass(frozen=True, slots=True)
class Names:
    """The key and the channels of one location. Channels know no databases, so their names carry it."""

    lease: bytes
    """Key: the channel of the server that holds the location."""
    hubs: bytes
    """Start of the servers' channels."""
    inboxes: bytes
    """Start of the clients' channels; the client's token follows."""
    news: bytes
    """Channel: ``+hub`` when a server comes, ``-hub`` when it leaves."""

    @classmethod
    def of(cls, prefix: str, database: int) -> Names:
        """Return the names for a prefix and a database."""
        parts = [f"{prefix}:lease"] + [f"{prefix}:{database}:{part}" for part in ("hub:", "inbox:", "news")]
        return cls(*(part.encode() for part in parts))


def mint() -> bytes:
    """Return a token that nobody has had before."""
    return secrets.token_hex(TOKEN // 2).encode()


def is_token(token: bytes) -> bool:
    """Whether these bytes may be a token."""
    return len(token) == TOKEN and all(digit in b"0123456789abcdef" for digit in token)
