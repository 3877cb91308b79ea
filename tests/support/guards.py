"""A client's and a server's guard, and what passes between them."""

from __future__ import annotations

import itertools
from collections import Counter

from remit._protocol import frames
from remit._protocol.auth import ClientAuth, ServerAuth, SharedKey
from remit._protocol.frames import Hello

KEY = SharedKey(b"a key of the tests")
PEER = "peer"
GENERATIONS = itertools.count(1)


def hello() -> bytes:
    return frames.pack(Hello(b"s" * 16, next(GENERATIONS), b"", 1, 0, 0, "msgpack", 1000))


class Ends:
    """A client's and a server's guard, and what passed between them."""

    def __init__(self, secret: SharedKey = KEY, of_server: SharedKey = KEY) -> None:
        self.client = ClientAuth(secret, Counter())
        self.server = ServerAuth(of_server, Counter())
        self.wire: list[tuple[str, bytes]] = []

    def up(self, frame: bytes, peer: str = PEER) -> bytes | None:
        """Carry what the client's guard makes of a frame to the server's."""
        sealed = self.client.wrap_frame(frame)
        assert sealed is not None
        self.client.mark_sent()
        return self.carry_up(sealed, peer)

    def carry_up(self, sealed: bytes, peer: str = PEER) -> bytes | None:
        self.wire.append(("up", sealed))
        return self.server.unwrap_frame(peer, sealed)

    def down(self, frame: bytes, peer: str = PEER) -> bytes | None:
        sealed = self.server.wrap_frame(peer, frame)
        assert sealed is not None
        self.server.mark_sent(peer)
        self.wire.append(("down", sealed))
        return self.client.unwrap_frame(sealed)

    def replies(self) -> list[bytes | None]:
        """Carry what the server's guard says by itself; return what the client's machine hears of it."""
        heard = []
        while self.server.replies:
            _, frame = self.server.replies.popleft()
            self.wire.append(("down", frame))
            heard.append(self.client.unwrap_frame(frame))
        return heard

    def first(self) -> bytes:
        first, self.client.pending_hello = self.client.pending_hello, None
        assert first is not None
        return first

    def greet(self, peer: str = PEER) -> bytes:
        """Say HELLO, as the first frame of a channel; return it."""
        said = hello()
        assert self.up(said, peer) is None
        assert self.replies() == [None]
        assert self.carry_up(self.first(), peer) == said
        return said


def flipped(frame: bytes, bit: int) -> bytes:
    bit %= len(frame) * 8
    return frame[: bit // 8] + bytes((frame[bit // 8] ^ 1 << bit % 8,)) + frame[bit // 8 + 1 :]
