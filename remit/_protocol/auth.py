"""Authentication of frames with a pre-shared key: a handshake with two nonces, then a MAC on every frame.

Specification, version 1. ``K`` is the shared key, ``MAC(key, person, data)`` is keyed BLAKE2b with that personalization
and 16 bytes of output, ``+`` concatenates. All nonces are random and used once.

| value  | definition                                                                                         |
|--------|----------------------------------------------------------------------------------------------------|
| K'     | BLAKE2b-256(K, person "remit key"); accepts keys of any length, and separates them from other uses |
| Nc, Ns | nonces of client and server, 16 bytes each                                                         |
| id     | Nc[:8], the channel id                                                                             |
| Kc, Ks | keyed BLAKE2b-512(K', "remit channel", Nc+Ns); 32 bytes for each direction: client, server         |

| message         | direction | content after the four bytes of every frame                                          |
|-----------------|-----------|--------------------------------------------------------------------------------------|
| AUTH_REQUEST    | C -> S    | Nc, MAC(K', "remit knock", Nc)                                                       |
| AUTH_ACCEPT     | S -> C    | Nc, Ns, MAC(K', "remit admit", Nc+Ns)                                                |
| AUTHENTICATED   | both      | id, counter u64, inner frame, MAC(Kc or Ks, "remit frame", all bytes before the MAC) |
| UNKNOWN_CHANNEL | S -> C    | id, MAC(K', "remit stranger", id)                                                    |
| REFUSE          | S -> C    | reason, and a copy of the refused AUTH_REQUEST; not authenticated                    |

Sequence. Each HELLO of the client session starts a handshake::

    client                               server
    HELLO   -> AUTH_REQUEST          ->
               AUTH_ACCEPT           <-             both derive the channel
               AUTHENTICATED(HELLO)  ->  HELLO      the server confirms the channel with the first valid frame
    WELCOME <- AUTHENTICATED(...)    <-  WELCOME

* The server authenticates a client by the first AUTHENTICATED frame, whose key depends on Ns. A replayed AUTH_REQUEST
  only makes it offer a channel that the attacker cannot use. The client authenticates the server by AUTH_ACCEPT.
* Replay: the counter of each direction must increase strictly. There is no window: a frame that arrives after a
  later one is dropped, and the session resends its events. New nonces per handshake exclude replays across connections.
* Loss: this layer has no clock and no timer. A lost message is repeated because the session repeats its HELLO.
* Protected: integrity and origin of each frame, order, against replay and reflection (one key for each direction).
* Not protected: confidentiality, traffic analysis, forward secrecy, and denial of service by an attacker who can drop
  or delay frames, or answer an AUTH_REQUEST with a forged REFUSE. All holders of the key are equal: each can act as
  any other, and as the server.
"""

from __future__ import annotations

import secrets
import struct
from collections import Counter, deque
from hashlib import blake2b
from hmac import compare_digest
from typing import Final

from remit._protocol import frames
from remit._protocol.frames import FrameKind, Refuse, head
from remit.errors import ProtocolError
from remit.transport import Peer

TAG_BYTES: Final = 16
NONCE_BYTES: Final = 16
CHANNEL_ID_BYTES: Final = 8
_HANDSHAKE: Final = {
    FrameKind.AUTH_REQUEST: (b"remit knock", NONCE_BYTES),
    FrameKind.AUTH_ACCEPT: (b"remit admit", 2 * NONCE_BYTES),
    FrameKind.UNKNOWN_CHANNEL: (b"remit stranger", CHANNEL_ID_BYTES),
}
"""Personalization and bytes of content of the frames that `SharedKey` signs."""
_HEADER: Final = struct.Struct(f">4s{CHANNEL_ID_BYTES}sQ")
OVERHEAD_BYTES: Final = _HEADER.size + TAG_BYTES
"""Bytes that an AUTHENTICATED frame adds to its inner frame."""
MAX_OFFERS_PER_PEER: Final = 4
"""Handshakes of one peer that are accepted and not confirmed. Older ones are discarded."""
PAST_CHANNELS_KEPT: Final = 8
"""Earlier channels of one peer whose AUTH_REQUEST is recognised as a late duplicate."""
MAX_PENDING_PEERS: Final = 4096
"""Peers with unconfirmed handshakes."""
MAX_CHANNELS: Final = 65_536
"""Channels of a server. A client whose channel is discarded repeats the handshake, and loses no event."""
REFUSALS: Final = {
    "key": "its key is another one: give both ends the same key= or key_file=",
    "keyed": "it has no key: give it the key= or key_file= of this client, or remove the key from this client",
    "unsigned": "it accepts authenticated frames only: give this client the key= or key_file= of the server",
}
"""Next action by reason. The client shows its own text instead of the received one, which is not authenticated."""


class SharedKey:
    """The pre-shared key of both ends. It makes and verifies the messages of the handshake."""

    __slots__ = ("_key",)

    def __init__(self, key: bytes) -> None:
        self._key = blake2b(key, digest_size=32, person=b"remit key").digest()

    def sign(self, kind: FrameKind, content: bytes) -> bytes:
        """Return a handshake frame with this content and its MAC."""
        return head(kind) + content + self._mac(kind, content)

    def verify(self, kind: FrameKind, frame: bytes) -> bytes:
        """Return the content of a handshake frame. Raises ProtocolError: truncated, forged."""
        if len(frame) != 4 + _HANDSHAKE[kind][1] + TAG_BYTES:
            raise ProtocolError("truncated", f"{kind.name} frame of {len(frame)} bytes")
        content = bytes(frame[4:-TAG_BYTES])
        if not compare_digest(frame[-TAG_BYTES:], self._mac(kind, content)):
            raise ProtocolError("forged", "the MAC does not match: another key, or a modified frame")
        return content

    def derive_channel(self, client_nonce: bytes, server_nonce: bytes, *, client: bool) -> AuthChannel:
        """Return the channel of a handshake, as seen by the client or by the server."""
        nonces = client_nonce + server_nonce
        material = blake2b(nonces, key=self._key, digest_size=64, person=b"remit channel").digest()
        to_server, to_client = material[:32], material[32:]
        keys = (to_server, to_client) if client else (to_client, to_server)
        return AuthChannel(client_nonce[:CHANNEL_ID_BYTES], *keys)

    def _mac(self, kind: FrameKind, content: bytes) -> bytes:
        return blake2b(content, key=self._key, digest_size=TAG_BYTES, person=_HANDSHAKE[kind][0]).digest()


class AuthChannel:
    """One end of a channel: wraps sent frames and unwraps received frames. Each direction has a key and a counter."""

    __slots__ = ("_plain", "_receive_mac", "_received", "_send_mac", "_sent", "_wrapped", "id")

    def __init__(self, identifier: bytes, send_key: bytes, receive_key: bytes) -> None:
        self.id = identifier
        # Hash states with the key already absorbed: copy() saves one compression for each frame.
        self._send_mac = blake2b(key=send_key, digest_size=TAG_BYTES, person=b"remit frame")
        self._receive_mac = blake2b(key=receive_key, digest_size=TAG_BYTES, person=b"remit frame")
        self._sent = 0
        self._received = 0
        self._plain: bytes | None = None
        self._wrapped = b""

    def wrap(self, frame: bytes) -> bytes:
        """Return an AUTHENTICATED frame with the next counter, the same for the same object until `mark_sent`."""
        # A frame that the link did not accept is offered again as the same object. Wrapping it twice would use up
        # a counter for each attempt, and cost a MAC.
        if frame is not self._plain:
            self._sent += 1
            header = _HEADER.pack(head(FrameKind.AUTHENTICATED), self.id, self._sent)
            mac = self._send_mac.copy()
            mac.update(header)
            mac.update(frame)
            self._plain, self._wrapped = frame, b"".join((header, frame, mac.digest()))
        return self._wrapped

    def mark_sent(self) -> None:
        """Note that the link accepted the frame from `wrap`: an equal frame gets another counter."""
        self._plain = None

    def unwrap(self, frame: bytes) -> bytes:
        """Return the inner frame of an AUTHENTICATED frame of this channel. Raises ProtocolError: replayed, forged."""
        counter: int = _HEADER.unpack_from(frame)[2]
        if counter <= self._received:
            raise ProtocolError("replayed", f"frame {counter} arrived after frame {self._received}")
        view = memoryview(frame)
        mac = self._receive_mac.copy()
        mac.update(view[:-TAG_BYTES])
        if not compare_digest(mac.digest(), view[-TAG_BYTES:]):
            raise ProtocolError("forged", "the MAC does not match: another key, or a modified frame")
        self._received = counter  # Only after the MAC: a forged counter must not block later frames.
        return bytes(view[_HEADER.size : -TAG_BYTES])


def channel_id_of(frame: bytes) -> bytes:
    """Return the channel id of an AUTHENTICATED frame, not verified. Raises ProtocolError."""
    if len(frame) < OVERHEAD_BYTES:
        raise ProtocolError("truncated", f"an AUTHENTICATED frame of {len(frame)} bytes")
    identifier: bytes = _HEADER.unpack_from(frame)[1]
    return identifier


class ClientAuth:
    """Authentication between a `ClientSession` and its link. ``rejected`` counts dropped frames by reason."""

    def __init__(self, key: SharedKey, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.pending_hello: bytes | None = None
        """The wrapped HELLO, which must be sent before any other frame."""
        self._key = key
        self._channel: AuthChannel | None = None
        self._hello = self._request = b""

    def wrap_frame(self, frame: bytes) -> bytes | None:
        """Return the frame to send for a frame of the session, or None before the handshake is complete."""
        if frame[3] == FrameKind.HELLO:
            if frame is not self._hello:
                self.reset()
                self._hello = frame
                self._request = self._key.sign(FrameKind.AUTH_REQUEST, secrets.token_bytes(NONCE_BYTES))
            return self._request
        return None if self._channel is None else self._channel.wrap(frame)

    def mark_sent(self) -> None:
        """Note that the link accepted the frame from `wrap_frame`."""
        if self._channel is not None:
            self._channel.mark_sent()

    def reset(self) -> None:
        """End the channel: the connection has ended, or another handshake starts."""
        self._channel = self.pending_hello = None
        self._hello = self._request = b""

    def unwrap_frame(self, frame: bytes) -> bytes | None:
        """Return the frame for the session, or None if there is none or the frame was rejected."""
        try:
            return self._handle(frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            return None

    def _handle(self, frame: bytes) -> bytes | None:
        kind = frames.kind_of(frame)
        if kind is FrameKind.AUTHENTICATED:
            identifier = channel_id_of(frame)
            if self._channel is None or identifier != self._channel.id:
                raise ProtocolError("stale", "a frame of another channel")
            return self._channel.unwrap(frame)
        if kind is FrameKind.AUTH_ACCEPT:
            self._handle_accept(frame)
            return None
        if kind is FrameKind.UNKNOWN_CHANNEL:
            if self._channel is None or self._key.verify(kind, frame) != self._channel.id:
                raise ProtocolError("stale", "UNKNOWN_CHANNEL for another channel")
            return head(FrameKind.IDENTIFY)  # The session answers with HELLO, which starts a handshake.
        if kind is FrameKind.REFUSE:
            return self._handle_refuse(frame)
        raise ProtocolError("unsigned", f"{kind.name} is not authenticated")

    def _handle_accept(self, frame: bytes) -> None:
        nonces = self._key.verify(FrameKind.AUTH_ACCEPT, frame)
        client_nonce, server_nonce = nonces[:NONCE_BYTES], nonces[NONCE_BYTES:]
        if client_nonce != self._request[4:-TAG_BYTES]:  # The request is empty if none is open.
            raise ProtocolError("stale", "AUTH_ACCEPT for another request")
        self._channel = self._key.derive_channel(client_nonce, server_nonce, client=True)
        # Wrapped now, so that it has the first counter and nothing can be sent before it.
        self.pending_hello, self._request = self._channel.wrap(self._hello), b""

    def _handle_refuse(self, frame: bytes) -> bytes:
        """Return a refusal for the session. It is not authenticated, so it must repeat our own open request."""
        refusal = frames.unpack(FrameKind.REFUSE, frame)
        if not isinstance(refusal, Refuse) or not self._request or refusal.echo != frames.echo_of(self._request):
            raise ProtocolError("unsigned", "REFUSE is not authenticated")
        detail = REFUSALS.get(refusal.reason, "it uses another version of the protocol: install the same Remit on both")
        return frames.pack(Refuse(refusal.reason, detail))


class ServerAuth:
    """Authentication between `ServerSessions` and the link. ``rejected`` counts dropped frames by reason.

    | received                            | effect                                                       |
    |-------------------------------------|--------------------------------------------------------------|
    | AUTH_REQUEST, new                   | offer a channel: AUTH_ACCEPT                                 |
    | AUTH_REQUEST, already offered       | repeat the same AUTH_ACCEPT                                  |
    | AUTH_REQUEST of a confirmed channel | rejected: replayed                                           |
    | AUTHENTICATED, confirmed channel    | pass on the inner frame                                      |
    | AUTHENTICATED, offered channel      | confirm it in place of the last one; pass on the inner frame |
    | AUTHENTICATED, unknown channel      | UNKNOWN_CHANNEL                                              |
    | anything else                       | rejected: unsigned; a HELLO is answered with REFUSE          |
    """

    def __init__(self, key: SharedKey, rejected: Counter[str]) -> None:
        self.rejected = rejected
        self.replies: deque[tuple[Peer, bytes]] = deque()
        """Frames to send without a wrapper. If the link refuses one, drop it: the client repeats its request."""
        self._key = key
        self._channels: dict[Peer, AuthChannel] = {}
        self.offers: dict[Peer, dict[bytes, tuple[bytes, AuthChannel]]] = {}
        """Unconfirmed handshakes by channel id: server nonce and channel."""
        self._past_ids: dict[Peer, deque[bytes]] = {}

    def wrap_frame(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return the frame to send for a frame of a session, or None without a channel to this peer."""
        channel = self._channels.get(peer)
        return None if channel is None else channel.wrap(frame)

    def mark_sent(self, peer: Peer) -> None:
        """Note that the link accepted the frame from `wrap_frame`."""
        channel = self._channels.get(peer)
        if channel is not None:
            channel.mark_sent()

    def remove_peer(self, peer: Peer) -> None:
        """Remove the channels of a connection that has ended."""
        for each in (self._channels, self.offers, self._past_ids):
            each.pop(peer, None)

    def unwrap_frame(self, peer: Peer, frame: bytes) -> bytes | None:
        """Return the frame for the sessions, or None if there is none or the frame was rejected."""
        try:
            kind = frames.kind_of(frame)
            if kind is FrameKind.AUTHENTICATED:
                return self._unwrap(peer, frame)
            if kind is not FrameKind.AUTH_REQUEST:
                raise ProtocolError("unsigned", f"{kind.name} is not authenticated")
            self._handle_request(peer, frame)
        except ProtocolError as error:
            self.rejected[error.reason] += 1
            self._refuse(peer, frame, error.reason)
        return None

    def _unwrap(self, peer: Peer, frame: bytes) -> bytes:
        identifier = channel_id_of(frame)
        channel = self._channels.get(peer)
        if channel is not None and channel.id == identifier:
            return channel.unwrap(frame)
        offer = self.offers.get(peer, {}).get(identifier)
        if offer is not None:
            inner = offer[1].unwrap(frame)
            self._confirm(peer, offer[1])
            return inner
        self.replies.append((peer, self._key.sign(FrameKind.UNKNOWN_CHANNEL, identifier)))
        raise ProtocolError("unknown_channel", "a frame of a channel that this server does not know")

    def _confirm(self, peer: Peer, channel: AuthChannel) -> None:
        offers = self.offers.pop(peer, {})
        last = self._channels.pop(peer, None)
        if last is not None:
            self._past_ids.setdefault(peer, deque(maxlen=PAST_CHANNELS_KEPT)).append(last.id)
        # The first frame of this channel may be late: the client may already use a channel that was offered later.
        later = list(offers)[list(offers).index(channel.id) + 1 :]
        if later:
            self.offers[peer] = {identifier: offers[identifier] for identifier in later}
        while len(self._channels) >= MAX_CHANNELS:
            oldest = next(iter(self._channels))
            del self._channels[oldest]
            self._past_ids.pop(oldest, None)
        self._channels[peer] = channel

    def _handle_request(self, peer: Peer, frame: bytes) -> None:
        client_nonce = self._key.verify(FrameKind.AUTH_REQUEST, frame)
        identifier = client_nonce[:CHANNEL_ID_BYTES]
        channel = self._channels.get(peer)
        if (channel is not None and channel.id == identifier) or identifier in self._past_ids.get(peer, ()):
            # Another server nonce would derive other keys, and frames of the confirmed channel would look forged.
            raise ProtocolError("replayed", "the AUTH_REQUEST of a confirmed channel")
        offers = self.offers.setdefault(peer, {})
        if identifier not in offers:
            server_nonce = secrets.token_bytes(NONCE_BYTES)
            offers[identifier] = server_nonce, self._key.derive_channel(client_nonce, server_nonce, client=False)
        # A duplicate request gets the same answer, so that it does not matter which of the answers arrives first.
        self.replies.append((peer, self._key.sign(FrameKind.AUTH_ACCEPT, client_nonce + offers[identifier][0])))
        while len(offers) > MAX_OFFERS_PER_PEER:
            del offers[next(iter(offers))]
        while len(self.offers) > MAX_PENDING_PEERS:
            del self.offers[next(iter(self.offers))]

    def _refuse(self, peer: Peer, frame: bytes, reason: str) -> None:
        """Refuse a client that starts without the key. A peer with a channel gets no answer to a rejected frame."""
        if peer in self._channels or len(frame) < 4:
            return
        if frame[3] == FrameKind.AUTH_REQUEST and reason == "forged":
            reason = "key"
        elif reason != "version" and not (frame[3] == FrameKind.HELLO and reason == "unsigned"):
            return
        detail = REFUSALS.get(reason, f"it uses version {frames.VERSION} of the protocol")
        self.replies.append((peer, frames.pack(Refuse(reason, detail, frames.echo_of(frame)))))
