"""Mutants that do not say, or say wrongly, who is there."""

from __future__ import annotations

import itertools
from typing import Any

from mutants.making import (
    QUICK,
    Retold,
    Sound,
    mutant,
)
from remit.transport import (
    SERVER,
    Arrival,
    Down,
    Frame,
    Peer,
    Sent,
    Up,
)
from remit.transports.memory import MemoryLink


@mutant("clients_have_distinct_tokens", "not within .* receives its frame", deadline=QUICK)
class SendsToWhoeverCameLast(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        return super().send(list(self._routes)[-1] if self._routes else peer, frame)


@mutant("tokens_are_values", "not hashable")
class HasUnhashableTokens(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        return arrival._replace(peer=[arrival.peer])

    def send(self, peer: Peer, frame: bytes) -> Sent:
        return super().send(peer[0] if isinstance(peer, list) else peer, frame)


@mutant("tokens_are_values", "under other tokens")
class HasChangingTokens(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        self.sent += 1
        return arrival._replace(peer=(arrival.peer, self.sent))

    def send(self, peer: Peer, frame: bytes) -> Sent:
        return super().send(peer[0] if isinstance(peer, tuple) else peer, frame)


@mutant("a_token_is_never_used_again", "tokens of successive clients")
class ReusesTokens(Sound):
    def _connect_client(self, client: MemoryLink) -> None:
        from remit.transports.memory import _Route

        taken = {route.theirs for route in self._connections.values()}
        token = next(number for number in itertools.count(1) if number not in taken)
        self.add_route(_Route(self, client, ours=SERVER, theirs=token))
        client.add_route(_Route(client, self, ours=token, theirs=SERVER))


@mutant("a_client_that_goes_is_gone", "goes to another client")
class RevivesTokens(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        revived = said is Sent.GONE and isinstance(peer, int) and self._routes
        return super().send(next(iter(self._routes)), frame) if revived else said


@mutant("silent_clients_are_seen", "not within .* reports Down", deadline=QUICK)
class NeverSaysDown(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        return None if isinstance(arrival, Down) else arrival


@mutant("up_comes_first_and_down_last", "'Frame', 'Up'")
class SaysUpAfterTheFirstFrame(Sound):
    late: Arrival | None = None
    due = False

    def receive(self) -> Arrival | None:
        if self.due:
            self.due = False
            return self.late
        arrival = super().receive()
        if isinstance(arrival, Up) and self.serves:
            self.late = arrival
            return None
        if isinstance(arrival, Frame) and self.late is not None and not self.sent:
            self.sent = 1
            self.due = True
        return arrival


@mutant("silent_clients_are_seen", "not within .* reports Up", deadline=QUICK)
class SeesOnlyWhoSends(SaysUpAfterTheFirstFrame):
    pass


@mutant("up_comes_first_and_down_last", "'Down', 'Frame'|Frame.*Down.*Frame")
class SaysDownBeforeTheLastFrames(Sound):
    def enqueue(self, arrival: Arrival, route: Any = None) -> None:
        super().enqueue(arrival, route)
        if isinstance(arrival, Down):
            self.inbox.insert(max(0, len(self.inbox) - 4), self.inbox.pop())


@mutant("up_comes_first_and_down_last", "Down without a reason")
class GivesNoReason(Retold):
    def retell(self, arrival: Arrival) -> Arrival | None:
        return Down(arrival.peer, "") if isinstance(arrival, Down) else arrival


@mutant("a_loss_has_a_reason", "Down at the client without a reason")
class GivesTheClientNoReason(Sound):
    def receive(self) -> Arrival | None:
        arrival = super().receive()
        return Down(arrival.peer, "") if isinstance(arrival, Down) else arrival


@mutant("a_loss_has_a_reason", "not within .* why is empty", deadline=QUICK)
class KeepsTheReason(Sound):
    def receive(self) -> Arrival | None:
        arrival = super().receive()
        if isinstance(arrival, Down):
            self.why = arrival.why
        return arrival


@mutant("a_loss_has_a_reason", "no string")
class HasNoText(Sound):
    why = property(lambda _: None, lambda *_: None)  # type: ignore[assignment]


@mutant("a_server_goes_and_returns", "not within .* reports Down", deadline=QUICK)
class ReconnectsSilently(Sound):
    def receive(self) -> Arrival | None:
        arrival = super().receive()
        return None if isinstance(arrival, Down) and not self.serves else arrival


@mutant("a_client_may_come_first", "before a server is bound")
class SaysUpTooEarly(Sound):
    def receive(self) -> Arrival | None:
        if not self.serves and not self.sent:
            self.sent = 1
            return Up(SERVER)
        return super().receive()


@mutant("the_client_knows_only_the_server", "arrivals at the client's end")
class NumbersItsServers(Sound):
    def receive(self) -> Arrival | None:
        arrival = super().receive()
        return arrival if self.serves or arrival is None else arrival._replace(peer=7)
