"""Guards refuse: another key, none, another version; and what says so is believed only if it can be true."""

from __future__ import annotations

from collections import Counter

import pytest
from guards import KEY, PEER, Ends, hello

from remit._protocol import frames
from remit._protocol.auth import ClientAuth, ServerAuth, SharedKey
from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.frames import FrameKind, Refuse
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit.codec import MessagePack
from remit.transport import SERVER, Frame, Up


def refusal(frame: bytes | None) -> Refuse:
    assert frame is not None
    refused = frames.unpack(FrameKind.REFUSE, frame)
    assert isinstance(refused, Refuse)
    return refused


def test_another_key_is_refused_and_says_what_to_do() -> None:
    ends = Ends(of_server=SharedKey(b"another key"))
    ends.up(hello())
    (heard,) = ends.replies()
    assert refusal(heard).reason == "key"
    assert "give both ends the same key=" in refusal(heard).detail
    assert ends.server.rejected == {"forged": 1}


def test_a_client_without_a_key_is_refused_with_advice() -> None:
    server = ServerAuth(KEY, Counter())
    assert server.unwrap_frame(PEER, hello()) is None
    refused = refusal(server.replies.popleft()[1])
    assert (refused.reason, server.rejected) == ("unsigned", {"unsigned": 1})
    assert "key=" in refused.detail


def test_a_server_without_a_key_refuses_a_client_that_has_one() -> None:
    codec = MessagePack()
    acceptor = ServerSessions(lambda codec, limit: Outbox(codec, max_frame=limit), max_frame=1000, liveness_timeout=0.0)
    connector = ClientSession(codec, Outbox(codec, max_frame=1000), max_frame=1000)
    client = ClientAuth(KEY, Counter())
    connector.handle_arrival(Up(SERVER), 0.0)
    knock = client.wrap_frame(connector.next_frame() or b"")
    assert knock is not None
    acceptor.handle_arrival(Frame(PEER, knock), 0.0)
    ((_, answer),) = acceptor.unknown_peer_replies
    connector.handle_arrival(Frame(SERVER, client.unwrap_frame(answer) or b""), 0.0)
    assert connector.state is ConnectionState.REFUSED
    assert connector.refusal is not None
    assert connector.refusal.reason == "keyed"
    assert acceptor.rejected == {"keyed": 1}
    assert not acceptor.sessions


def test_a_forged_refusal_is_not_believed(ends: Ends) -> None:
    forged = frames.pack(Refuse("key", "go away", b""))
    assert ends.client.unwrap_frame(forged) is None
    ends.up(hello())
    assert ends.client.unwrap_frame(forged) is None
    assert ends.client.unwrap_frame(frames.pack(Refuse("key", "go away", bytes(32)))) is None
    assert ends.client.rejected == {"unsigned": 3}
    assert ends.replies() == [None]
    assert ends.client.pending_hello is not None


def test_what_a_refusal_says_is_not_what_the_wire_says() -> None:
    client = ClientAuth(KEY, Counter())
    knock = client.wrap_frame(hello())
    assert knock is not None
    heard = client.unwrap_frame(frames.pack(Refuse("expired", "run this command as root", frames.echo_of(knock))))
    assert "root" not in refusal(heard).detail


def test_a_client_of_another_version_is_refused_as_such(monkeypatch: pytest.MonkeyPatch) -> None:
    ends = Ends()
    with monkeypatch.context() as patch:
        patch.setattr(frames, "VERSION", 7)
        patch.setattr(frames, "_kinds", {})
        ends.up(hello())
    (heard,) = ends.replies()
    assert refusal(heard).reason == "version"
    assert ends.server.rejected == {"version": 1}
