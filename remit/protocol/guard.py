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
from collections import Counter, deque
from typing import Final

from remit.errors import ProtocolError
from remit.protocol import frames
from remit.protocol.frames import Kind, Refuse
from remit.protocol.sealing import NONCE, Channel, Secret, id_of, read_knock
from remit.transport import Peer

__all__ = ["ClientGuard", "ServerGuard"]

OFFERED: Final = 4
"""Knocks of one peer that may be answered and not yet followed by a sealed frame."""
PAST: Final = 8
"""Channels of one peer that are remembered once it has another one."""
PEERS: Final = 4096
"""Peers that may have knocked and not yet sent a sealed frame."""
CHANNELS: Final = 65_536
"""Channels of a server. One that has to make room costs its client another greeting, and no event."""
REFUSALS: Final = {
    "key": "its key is another one: give both ends the same key= or key_file=",
    "keyed": "it has no key: give it the key= or key_file= of this client, or take it from this client",
    "unsigned": "it hears signed frames only: give this client the key= or key_file= of the server",
}
"""What to do, by the reason of a refusal. A client says it in its own words: a refusal is not signed."""


class ClientGuard:
    """Before a `Connector`. ``rejected`` counts what was not let in, by reason."""

    def __init__(self, secret: Secret, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.first: bytes | None = None
        """A frame that has to be sent before any other: the HELLO that was knocked for, sealed."""
        self._secret = secret
        self._channel: Channel | None = None
        self._hello = self._knock = b""
        self._plain: bytes | None = None
        self._sealed = b""

    def seal(self, frame: bytes) -> bytes | None:
        """Return what to send for a machine's frame, the same until `sent`; None: it has to wait for its admission."""
        if frame[3] == Kind.HELLO:
            if frame is not self._hello:
                self.leave()
                self._hello, self._knock = frame, self._secret.knock()
            return self._knock
        if self._channel is None:
            return None
        if frame is not self._plain:
            self._plain, self._sealed = frame, self._channel.seal(frame)
        return self._sealed

    def sent(self) -> None:
        """Note that the link took what `seal` returned: the same frame again would be another one."""
        self._plain = None

    def leave(self) -> None:
        """The connection has ended, or another one begins."""
        self._channel = self._plain = self.first = None
        self._hello = self._knock = b""

    def heard(self, frame: bytes) -> bytes | None:
        """Return what to give the machine for a frame that came in; None: nothing, and it may be counted."""
        try:
            return self._heard(frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            return None

    def _heard(self, frame: bytes) -> bytes | None:
        kind = frames.kind_of(frame)
        if kind is Kind.SEALED:
            return self._opened(frame)
        if kind is Kind.ADMIT:
            self._admitted(frame)
            return None
        if kind is Kind.STRANGER:
            if self._channel is None or self._secret.heard_stranger(frame) != self._channel.id:
                raise ProtocolError("stale", "a word about another channel")
            return frames.who()
        if kind is Kind.REFUSE:
            return self._refused(frame)
        raise ProtocolError("unsigned", f"{kind.name} without a tag")

    def _opened(self, frame: bytes) -> bytes:
        identifier = id_of(frame)
        if self._channel is None or identifier != self._channel.id:
            raise ProtocolError("stale", "a frame of another channel")
        return self._channel.open(frame)

    def _admitted(self, frame: bytes) -> None:
        nonce, own = self._secret.heard_admit(frame)
        if not self._knock or nonce != read_knock(self._knock)[0]:
            raise ProtocolError("stale", "an answer to another knock")
        self._channel = self._secret.channel(nonce, own, client=True)
        # Numbered now, and so to leave before all that is numbered later.
        self.first, self._knock = self._channel.seal(self._hello), b""

    def _refused(self, frame: bytes) -> bytes:
        """Believe an unsigned refusal only while nobody has admitted us, and if it repeats our very knock."""
        refusal = frames.unpack(Kind.REFUSE, frame)
        if not isinstance(refusal, Refuse) or not self._knock or refusal.about != frames.about(self._knock):
            raise ProtocolError("unsigned", "REFUSE without a tag")
        detail = REFUSALS.get(refusal.reason, "it does not speak as this client does: use the same version of Remit")
        return frames.pack(Refuse(refusal.reason, detail))


class ServerGuard:
    """Before an `Acceptor`. ``rejected`` counts what was not let in, by reason."""

    def __init__(self, secret: Secret, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.replies: deque[tuple[Peer, bytes]] = deque()
        """What to send that is not sealed. Not to be kept if it is not taken: whoever waits for it asks again."""
        self._secret = secret
        self._channels: dict[Peer, Channel] = {}
        self._offered: dict[Peer, dict[bytes, tuple[bytes, Channel]]] = {}
        self._held: dict[Peer, tuple[bytes, bytes]] = {}
        self._past: dict[Peer, deque[bytes]] = {}
        """Channels that a peer had before its present one: a knock for one of them comes late."""

    def seal(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return what to send for a machine's frame, the same until `sent`; None: there is no channel to this peer."""
        channel = self._channels.get(peer)
        if channel is None:
            return None
        held = self._held.get(peer)
        if held is not None and held[0] is frame:
            return held[1]
        return channel.seal(frame)

    def refused(self, peer: Peer, frame: bytes, sealed: bytes) -> None:
        """Note that the link had no room for what `seal` returned: the same is going to be tried again."""
        self._held[peer] = frame, sealed

    def sent(self, peer: Peer) -> None:
        """Note that the link took what `seal` returned: the same frame again would be another one."""
        if self._held:
            self._held.pop(peer, None)

    def leave(self, peer: Peer) -> None:
        """A connection has ended."""
        for each in (self._channels, self._offered, self._held, self._past):
            each.pop(peer, None)

    def heard(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return what to give the machine for a frame that came in; None: nothing, and it may be counted."""
        try:
            kind = frames.kind_of(frame)
            if kind is Kind.SEALED:
                return self._opened(peer, frame)
            if kind is not Kind.KNOCK:
                raise ProtocolError("unsigned", f"{kind.name} without a tag")
            self._knocked(peer, frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            self._refuse(peer, frame, error.reason)
        return None

    def _opened(self, peer: Peer, frame: bytes) -> bytes | None:
        """Three cases: 1. this peer's channel; 2. one that was offered to it, which begins now; 3. unknown here."""
        identifier = id_of(frame)
        channel = self._channels.get(peer)
        if channel is not None and channel.id == identifier:
            return channel.open(frame)
        offered = self._offered.get(peer, {}).get(identifier)
        if offered is not None:
            opened = offered[1].open(frame)
            self._begin(peer, offered[1])
            return opened
        self.replies.append((peer, self._secret.stranger(identifier)))
        raise ProtocolError("stranger", "a frame of a channel that is not known here")

    def _begin(self, peer: Peer, channel: Channel) -> None:
        offers = self._offered.pop(peer, {})
        self._held.pop(peer, None)
        before = self._channels.pop(peer, None)
        if before is not None:
            self._past.setdefault(peer, deque(maxlen=PAST)).append(before.id)
        # What was offered later may be what the client is about to use: this one's first frame was late.
        later = list(offers)[list(offers).index(channel.id) + 1 :]
        if later:
            self._offered[peer] = {identifier: offers[identifier] for identifier in later}
        while len(self._channels) >= CHANNELS:
            oldest = next(iter(self._channels))
            del self._channels[oldest]
            self._past.pop(oldest, None)
        self._channels[peer] = channel

    def _knocked(self, peer: Peer, frame: bytes) -> None:
        nonce = self._secret.heard_knock(frame)
        identifier = nonce[:8]
        channel = self._channels.get(peer)
        if (channel is not None and channel.id == identifier) or identifier in self._past.get(peer, ()):
            # To answer it with another number would make its channel's late frames look forged.
            raise ProtocolError("replayed", "a knock that was answered")
        offers = self._offered.setdefault(peer, {})
        if identifier not in offers:
            own = secrets.token_bytes(NONCE)
            offers[identifier] = own, self._secret.channel(nonce, own, client=False)
        # A knock that came twice has one answer, so that it does not matter which of the two is heard first.
        self.replies.append((peer, self._secret.admit(nonce, offers[identifier][0])))
        while len(offers) > OFFERED:
            del offers[next(iter(offers))]
        while len(self._offered) > PEERS:
            del self._offered[next(iter(self._offered))]

    def _refuse(self, peer: Peer, frame: bytes, reason: str) -> None:
        """Say what to do to one who greets without our key. One who is here already is told nothing."""
        if peer in self._channels or len(frame) < 4:
            return
        if frame[3] == Kind.KNOCK and reason == "forged":
            reason = "key"
        elif reason != "version" and not (frame[3] == Kind.HELLO and reason == "unsigned"):
            return
        detail = REFUSALS.get(reason, f"it speaks version {frames.VERSION} of the protocol")
        self.replies.append((peer, frames.pack(Refuse(reason, detail, frames.about(frame)))))
