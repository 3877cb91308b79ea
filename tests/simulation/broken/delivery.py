"""Broken delivery: sessions that lose, repeat or confirm what they must not."""

from __future__ import annotations

from typing import Any

from broken import Mutation
from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.outbox import Outbox
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Inbox, Session


def admit_a_gap(self: Inbox, first: int) -> bool:
    return first > self.received + 2


def admit_again(self: Inbox, first: int, events: list[Any]) -> list[Any]:
    return events


def acknowledge_before_done(self: Session) -> tuple[int, int]:
    self.ack_due = self._ack_late = False
    self._ack_at, self._acked = None, self.inbox.received
    return self._acked, self._acked


def omit_rewind(self: Outbox) -> None:
    return


def redeliver_unmarked(self: Outbox) -> None:
    self.received = self.done
    self.resend_unreceived()


def trust_any_acknowledgement(self: Outbox, received: int, done: int, *, original: Any) -> bool:
    return original(self, max(received, done), max(received, done))


def never_probe(self: Session, now: float) -> None:
    self.probe_at = float("inf")


def count_on_from_the_last_server(self: Inbox) -> Inbox:
    return self


def remember_nothing(self: ServerSessions, session: Session, *, original: Any) -> None:
    original(self, session)
    del self._ended_sessions[session.id]


def hear_of_any_connection(self: Session, peer: object, generation: int, *, original: Any) -> None:
    original(self, peer, generation)
    self.generation = self.outbox.generation = 1


def send_before_the_welcome(self: ClientSession) -> bool:
    return self.session.outbox.sendable()


def greet_once_only(self: ClientSession, now: float, *, original: Any) -> None:
    if self.session.generation == 0 or self.state is ConnectionState.ESTABLISHED:
        original(self, now)
        self._hello_at = float("inf")


MUTATIONS: list[Mutation] = [
    (Inbox, "has_gap_before", admit_a_gap),
    (Inbox, "new_events", admit_again),
    (Session, "_acknowledge", acknowledge_before_done),
    (Inbox, "restart", count_on_from_the_last_server),
    (Outbox, "resend_unreceived", omit_rewind),
    (Outbox, "redeliver", redeliver_unmarked),
    (Outbox, "confirm", trust_any_acknowledgement),
    (Session, "probe", never_probe),
    (Session, "connect", hear_of_any_connection),
    (ServerSessions, "_end_session", remember_nothing),
    (ClientSession, "has_sendable_events", send_before_the_welcome),
    (ClientSession, "_send_hello", greet_once_only),
]
