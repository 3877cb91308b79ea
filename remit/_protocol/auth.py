"""Guard: stands before a protocol machine where both ends share a key, and lets in only what is signed and fresh.

Between a machine and its link::

    client                             server
    HELLO   -> KNOCK number        ->
               ADMIT both numbers  <-             both have a channel now
               SEALED HELLO        ->  HELLO
    WELCOME <- SEALED WELCOME      <-  WELCOME    and so on, each frame sealed

Each HELLO knocks anew, so that each greeting has keys of its own, and a HELLO of old that somebody recorded is never
heard again, by this server or by its next instance. What is lost on the way is knocked for again by the machine's own
repeated HELLO: a guard has no clock and no timer.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter, deque
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import Kind, Refuse, head
from remit.errors import ProtocolError
from remit.transport import Peer

__all__ = [
    "OVERHEAD_BYTES",
    "AuthChannel",
    "ClientAuth",
    "ServerAuth",
    "SharedKey",
    "channel_id_of",
    "read_auth_accept",
    "read_auth_request",
    "read_unknown_channel",
]


TAG_BYTES: Final = 16
"""Bytes of a tag."""
NONCE_BYTES: Final = 16
"""Bytes of a number drawn for this once."""
CHANNEL_ID_BYTES: Final = 8
"""Bytes of the number by which a channel is named: the first of the client's."""
_SEALED: Final = struct.Struct(f">4s{CHANNEL_ID_BYTES}sQ")
OVERHEAD_BYTES: Final = _SEALED.size + TAG_BYTES
"""Bytes by which a sealed frame is longer."""


class SharedKey:
    """What both ends share. Makes and checks the frames by which a channel begins."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        # Of any length, and never used as it is: what else it may be used for, that tells nothing of this.
        self._key = blake2b(key, digest_size=32, person=b"remit key").digest()

    def auth_request(self) -> bytes:
        """Return a KNOCK frame, with a fresh number."""
        nonce = secrets.token_bytes(NONCE_BYTES)
        return head(Kind.AUTH_REQUEST) + nonce + self._tag(b"remit knock", nonce)

    def verify_request(self, frame: bytes) -> bytes:
        """Return the number of a KNOCK frame. Raises ProtocolError: it was not made with this key."""
        nonce, tag = read_auth_request(frame)
        self._expect(tag, b"remit knock", nonce)
        return nonce

    def auth_accept(self, nonce: bytes, own: bytes) -> bytes:
        """Return the ADMIT frame that answers a knock."""
        return head(Kind.AUTH_ACCEPT) + nonce + own + self._tag(b"remit admit", nonce + own)

    def verify_accept(self, frame: bytes) -> tuple[bytes, bytes]:
        """Return both numbers of an ADMIT frame. Raises ProtocolError."""
        nonce, own, tag = read_auth_accept(frame)
        self._expect(tag, b"remit admit", nonce + own)
        return nonce, own

    def unknown_channel(self, identifier: bytes) -> bytes:
        """Return the STRANGER frame about a channel that is not known."""
        return head(Kind.UNKNOWN_CHANNEL) + identifier + self._tag(b"remit stranger", identifier)

    def verify_unknown_channel(self, frame: bytes) -> bytes:
        """Return which channel a STRANGER frame is about. Raises ProtocolError."""
        identifier, tag = read_unknown_channel(frame)
        self._expect(tag, b"remit stranger", identifier)
        return identifier

    def derive_channel(self, nonce: bytes, own: bytes, *, client: bool) -> AuthChannel:
        """Return one end of the channel that two numbers make."""
        material = blake2b(nonce + own, key=self._key, digest_size=64, person=b"remit channel").digest()
        upwards, downwards = material[:32], material[32:]
        return AuthChannel(nonce[:CHANNEL_ID_BYTES], *((upwards, downwards) if client else (downwards, upwards)))

    def _tag(self, purpose: bytes, data: bytes) -> bytes:
        return blake2b(data, key=self._key, digest_size=TAG_BYTES, person=purpose).digest()

    def _expect(self, tag: bytes, purpose: bytes, data: bytes) -> None:
        if not compare_digest(tag, self._tag(purpose, data)):
            raise ProtocolError("forged", "a frame that was made with another key, or altered on its way")


class AuthChannel:
    """One end of a channel: seals what leaves and opens what comes, with a key for each direction."""

    __slots__ = ("_heard", "_opening", "_sealing", "_sent", "id")

    def __init__(self, identifier: bytes, out: bytes, back: bytes) -> None:
        self.id = identifier
        self._sealing = blake2b(key=out, digest_size=TAG_BYTES, person=b"remit frame")
        self._opening = blake2b(key=back, digest_size=TAG_BYTES, person=b"remit frame")
        self._sent = 0
        self._heard = 0

    def wrap(self, frame: bytes) -> bytes:
        """Return a frame with the next number and its tag."""
        self._sent += 1
        before = _SEALED.pack(head(Kind.AUTHENTICATED), self.id, self._sent)
        tag = self._sealing.copy()
        tag.update(before)
        tag.update(frame)
        return b"".join((before, frame, tag.digest()))

    def unwrap(self, frame: bytes) -> bytes:
        """Return the frame within a sealed one. Raises ProtocolError: replayed, forged."""
        _, identifier, number = _SEALED.unpack_from(frame)
        if identifier != self.id:
            raise ProtocolError("stale", "a frame of another channel")
        if number <= self._heard:
            raise ProtocolError("replayed", f"frame {number} came after frame {self._heard}")
        view = memoryview(frame)
        tag = self._opening.copy()
        tag.update(view[:-TAG_BYTES])
        if not compare_digest(tag.digest(), view[-TAG_BYTES:]):
            raise ProtocolError("forged", "a frame that was made with another key, or altered on its way")
        self._heard = number
        return bytes(view[_SEALED.size : -TAG_BYTES])


def channel_id_of(frame: bytes) -> bytes:
    """Return the channel that a SEALED frame says it belongs to. Raises ProtocolError."""
    if len(frame) < OVERHEAD_BYTES:
        raise ProtocolError("truncated", f"a sealed frame of {len(frame)} bytes")
    identifier: bytes = _SEALED.unpack_from(frame)[1]
    return identifier


def read_auth_request(frame: bytes) -> tuple[bytes, bytes]:
    """Return number and tag of a KNOCK frame, unchecked. Raises ProtocolError."""
    nonce, tag = _parts(frame, NONCE_BYTES, TAG_BYTES)
    return nonce, tag


def read_auth_accept(frame: bytes) -> tuple[bytes, bytes, bytes]:
    """Return both numbers and the tag of an ADMIT frame, unchecked. Raises ProtocolError."""
    nonce, own, tag = _parts(frame, NONCE_BYTES, NONCE_BYTES, TAG_BYTES)
    return nonce, own, tag


def read_unknown_channel(frame: bytes) -> tuple[bytes, bytes]:
    """Return channel and tag of a STRANGER frame, unchecked. Raises ProtocolError."""
    identifier, tag = _parts(frame, CHANNEL_ID_BYTES, TAG_BYTES)
    return identifier, tag


def _parts(frame: bytes, *sizes: int) -> list[bytes]:
    data, parts = frame[4:], []
    if len(data) != sum(sizes):
        raise ProtocolError("truncated", f"a greeting of {len(frame)} bytes")
    for size in sizes:
        parts.append(bytes(data[:size]))
        data = data[size:]
    return parts


MAX_OFFERS_PER_PEER: Final = 4
"""Knocks of one peer that may be answered and not yet followed by a sealed frame."""
PAST_CHANNELS_KEPT: Final = 8
"""Channels of one peer that are remembered once it has another one."""
MAX_PENDING_PEERS: Final = 4096
"""Peers that may have knocked and not yet sent a sealed frame."""
MAX_CHANNELS: Final = 65_536
"""Channels of a server. One that has to make room costs its client another greeting, and no event."""
REFUSALS: Final = {
    "key": "its key is another one: give both ends the same key= or key_file=",
    "keyed": "it has no key: give it the key= or key_file= of this client, or take it from this client",
    "unsigned": "it hears signed frames only: give this client the key= or key_file= of the server",
}
"""What to do, by the reason of a refusal. A client says it in its own words: a refusal is not signed."""


class ClientAuth:
    """Before a `Connector`. ``rejected`` counts what was not let in, by reason."""

    def __init__(self, secret: SharedKey, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.pending_hello: bytes | None = None
        """A frame that has to be sent before any other: the HELLO that was knocked for, sealed."""
        self._secret = secret
        self._channel: AuthChannel | None = None
        self._hello = self._knock = b""
        self._plain: bytes | None = None
        self._sealed = b""

    def wrap_frame(self, frame: bytes) -> bytes | None:
        """Return what to send for a machine's frame, the same until `sent`; None: it has to wait for its admission."""
        if frame[3] == Kind.HELLO:
            if frame is not self._hello:
                self.reset()
                self._hello, self._knock = frame, self._secret.auth_request()
            return self._knock
        if self._channel is None:
            return None
        if frame is not self._plain:
            self._plain, self._sealed = frame, self._channel.wrap(frame)
        return self._sealed

    def mark_sent(self) -> None:
        """Note that the link took what `seal` returned: the same frame again would be another one."""
        self._plain = None

    def reset(self) -> None:
        """The connection has ended, or another one begins."""
        self._channel = self._plain = self.pending_hello = None
        self._hello = self._knock = b""

    def unwrap_frame(self, frame: bytes) -> bytes | None:
        """Return what to give the machine for a frame that came in; None: nothing, and it may be counted."""
        try:
            return self._heard(frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            return None

    def _heard(self, frame: bytes) -> bytes | None:
        kind = frames.kind_of(frame)
        if kind is Kind.AUTHENTICATED:
            return self._opened(frame)
        if kind is Kind.AUTH_ACCEPT:
            self._admitted(frame)
            return None
        if kind is Kind.UNKNOWN_CHANNEL:
            if self._channel is None or self._secret.verify_unknown_channel(frame) != self._channel.id:
                raise ProtocolError("stale", "a word about another channel")
            return frames.identify()
        if kind is Kind.REFUSE:
            return self._refused(frame)
        raise ProtocolError("unsigned", f"{kind.name} without a tag")

    def _opened(self, frame: bytes) -> bytes:
        identifier = channel_id_of(frame)
        if self._channel is None or identifier != self._channel.id:
            raise ProtocolError("stale", "a frame of another channel")
        return self._channel.unwrap(frame)

    def _admitted(self, frame: bytes) -> None:
        nonce, own = self._secret.verify_accept(frame)
        if not self._knock or nonce != read_auth_request(self._knock)[0]:
            raise ProtocolError("stale", "an answer to another knock")
        self._channel = self._secret.derive_channel(nonce, own, client=True)
        # Numbered now, and so to leave before all that is numbered later.
        self.pending_hello, self._knock = self._channel.wrap(self._hello), b""

    def _refused(self, frame: bytes) -> bytes:
        """Believe an unsigned refusal only while nobody has admitted us, and if it repeats our very knock."""
        refusal = frames.unpack(Kind.REFUSE, frame)
        if not isinstance(refusal, Refuse) or not self._knock or refusal.echo != frames.echo_of(self._knock):
            raise ProtocolError("unsigned", "REFUSE without a tag")
        detail = REFUSALS.get(refusal.reason, "it does not speak as this client does: use the same version of Remit")
        return frames.pack(Refuse(refusal.reason, detail))


class ServerAuth:
    """Before an `Acceptor`. ``rejected`` counts what was not let in, by reason."""

    def __init__(self, secret: SharedKey, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.replies: deque[tuple[Peer, bytes]] = deque()
        """What to send that is not sealed. Not to be kept if it is not taken: whoever waits for it asks again."""
        self._secret = secret
        self._channels: dict[Peer, AuthChannel] = {}
        self._offered: dict[Peer, dict[bytes, tuple[bytes, AuthChannel]]] = {}
        self._held: dict[Peer, tuple[bytes, bytes]] = {}
        self._past: dict[Peer, deque[bytes]] = {}
        """Channels that a peer had before its present one: a knock for one of them comes late."""

    def wrap_frame(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return what to send for a machine's frame, the same until `sent`; None: there is no channel to this peer."""
        channel = self._channels.get(peer)
        if channel is None:
            return None
        held = self._held.get(peer)
        if held is not None and held[0] is frame:
            return held[1]
        return channel.wrap(frame)

    def keep_for_retry(self, peer: Peer, frame: bytes, sealed: bytes) -> None:
        """Note that the link had no room for what `seal` returned: the same is going to be tried again."""
        self._held[peer] = frame, sealed

    def mark_sent(self, peer: Peer) -> None:
        """Note that the link took what `seal` returned: the same frame again would be another one."""
        if self._held:
            self._held.pop(peer, None)

    def remove_peer(self, peer: Peer) -> None:
        """A connection has ended."""
        for each in (self._channels, self._offered, self._held, self._past):
            each.pop(peer, None)

    def unwrap_frame(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return what to give the machine for a frame that came in; None: nothing, and it may be counted."""
        try:
            kind = frames.kind_of(frame)
            if kind is Kind.AUTHENTICATED:
                return self._opened(peer, frame)
            if kind is not Kind.AUTH_REQUEST:
                raise ProtocolError("unsigned", f"{kind.name} without a tag")
            self._knocked(peer, frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            self._refuse(peer, frame, error.reason)
        return None

    def _opened(self, peer: Peer, frame: bytes) -> bytes | None:
        """Three cases: 1. this peer's channel; 2. one that was offered to it, which begins now; 3. unknown here."""
        identifier = channel_id_of(frame)
        channel = self._channels.get(peer)
        if channel is not None and channel.id == identifier:
            return channel.unwrap(frame)
        offered = self._offered.get(peer, {}).get(identifier)
        if offered is not None:
            opened = offered[1].unwrap(frame)
            self._begin(peer, offered[1])
            return opened
        self.replies.append((peer, self._secret.unknown_channel(identifier)))
        raise ProtocolError("unknown_channel", "a frame of a channel that is not known here")

    def _begin(self, peer: Peer, channel: AuthChannel) -> None:
        offers = self._offered.pop(peer, {})
        self._held.pop(peer, None)
        before = self._channels.pop(peer, None)
        if before is not None:
            self._past.setdefault(peer, deque(maxlen=PAST_CHANNELS_KEPT)).append(before.id)
        # What was offered later may be what the client is about to use: this one's first frame was late.
        later = list(offers)[list(offers).index(channel.id) + 1 :]
        if later:
            self._offered[peer] = {identifier: offers[identifier] for identifier in later}
        while len(self._channels) >= MAX_CHANNELS:
            oldest = next(iter(self._channels))
            del self._channels[oldest]
            self._past.pop(oldest, None)
        self._channels[peer] = channel

    def _knocked(self, peer: Peer, frame: bytes) -> None:
        nonce = self._secret.verify_request(frame)
        identifier = nonce[:8]
        channel = self._channels.get(peer)
        if (channel is not None and channel.id == identifier) or identifier in self._past.get(peer, ()):
            # To answer it with another number would make its channel's late frames look forged.
            raise ProtocolError("replayed", "a knock that was answered")
        offers = self._offered.setdefault(peer, {})
        if identifier not in offers:
            own = secrets.token_bytes(NONCE_BYTES)
            offers[identifier] = own, self._secret.derive_channel(nonce, own, client=False)
        # A knock that came twice has one answer, so that it does not matter which of the two is heard first.
        self.replies.append((peer, self._secret.auth_accept(nonce, offers[identifier][0])))
        while len(offers) > MAX_OFFERS_PER_PEER:
            del offers[next(iter(offers))]
        while len(self._offered) > MAX_PENDING_PEERS:
            del self._offered[next(iter(self._offered))]

    def _refuse(self, peer: Peer, frame: bytes, reason: str) -> None:
        """Say what to do to one who greets without our key. One who is here already is told nothing."""
        if peer in self._channels or len(frame) < 4:
            return
        if frame[3] == Kind.AUTH_REQUEST and reason == "forged":
            reason = "key"
        elif reason != "version" and not (frame[3] == Kind.HELLO and reason == "unsigned"):
            return
        detail = REFUSALS.get(reason, f"it speaks version {frames.VERSION} of the protocol")
        self.replies.append((peer, frames.pack(Refuse(reason, detail, frames.echo_of(frame)))))
