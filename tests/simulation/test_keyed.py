"""The simulator with keys at both ends: loss, repetition and overtaking stick nobody, and cost nothing but time."""

from __future__ import annotations

from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from engine import client as simulation_client
from engine import server as simulation_server
from engine.network import ClientEnd, Host, ServerEnd
from engine.simulator import simulate
from engine.virtual_clock import Actor

from remit._protocol.auth import ClientAuth, ServerAuth, SharedKey
from remit.transport import Arrival, Peer, Sent
from remit.transports.authenticated import AuthenticatedClientLink, AuthenticatedServerLink

SECRET = SharedKey(b"a key of the tests")
rejected: Counter[str] = Counter()


def bare(end: ClientEnd | ServerEnd) -> Any:
    """Return an end's own verbs as a link, for a signing one to go around."""
    kind = ClientEnd if isinstance(end, ClientEnd) else ServerEnd
    return SimpleNamespace(
        location=end.location,
        capabilities=end.capabilities,
        send=lambda peer, frame: kind.send(end, peer, frame),
        receive=lambda: kind.receive(end),
        close=lambda _: None,
    )


class SigningClientEnd(ClientEnd):
    def __init__(self, actor: Actor, host: Host) -> None:
        super().__init__(actor, host)
        self.signing = AuthenticatedClientLink(bare(self), ClientAuth(SECRET, rejected))

    def send(self, peer: Peer, frame: bytes) -> Sent:
        return self.signing.send(peer, frame)

    def receive(self) -> Arrival | None:
        return self.signing.receive()


class SigningServerEnd(ServerEnd):
    def __init__(self, actor: Actor, host: Host) -> None:
        super().__init__(actor, host)
        self.signing = AuthenticatedServerLink(bare(self), ServerAuth(SECRET, rejected))

    def send(self, peer: Peer, frame: bytes) -> Sent:
        return self.signing.send(peer, frame)

    def receive(self) -> Arrival | None:
        return self.signing.receive()


@pytest.fixture(autouse=True)
def signing(monkeypatch: pytest.MonkeyPatch) -> None:
    rejected.clear()
    monkeypatch.setattr(simulation_client, "ClientEnd", SigningClientEnd)
    monkeypatch.setattr(simulation_server, "ServerEnd", SigningServerEnd)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_what_is_promised_holds_with_keys(seed: int) -> None:
    assert simulate(seed, events=10_000, clients=60).events >= 10_000


def test_many_short_histories_hold_with_keys() -> None:
    for seed in range(200, 240):
        simulate(seed, events=1_000, clients=12)
    assert rejected["replayed"] > 100
    assert rejected["unknown_channel"] > 10
    # A knock that came twice, the second time very late, offers another channel of the same name: that is all.
    assert rejected["forged"] < 5
