"""Broken questions: answers that come too late, twice, or never."""

from __future__ import annotations

from collections.abc import Container
from typing import Any

from broken import Mutation
from remit._patterns.request_reply import RequestClient, RequestServer
from remit._protocol.client_session import ClientSession
from remit._protocol.outbox import Outbox
from remit._protocol.requests import Request, Requests

Open = Request[Any]


def forget_deadlines(self: Requests[Any], now: float) -> list[Open]:
    return []


def tell_nobody_of_a_loss(self: Requests[Any], unsent: Container[int]) -> list[Open]:
    return []


def give_up_what_may_run_twice(self: Requests[Any], unsent: Container[int]) -> list[Open]:
    return [each for each in self.open() if self.take(each.id)]


def never_ask_again(self: Requests[Any], kept: Container[int]) -> list[Open]:
    return []


def ask_everything_again(self: Requests[Any], kept: Container[int]) -> list[Open]:
    return list(self.open())


def answer_the_oldest(self: Requests[Any], identifier: int) -> Open | None:
    return original_take(self, min(self._open, default=identifier))


def run_what_was_redelivered(self: RequestServer, session: Any, question: Any, redelivered: bool) -> bool:
    return True


def forget_what_another_server_may_have_run(self: Outbox, *, sent: bool = True, marked: bool = True) -> set[int]:
    return original_kept(self, sent=sent)


def tell_nobody_that_the_server_began_anew(self: RequestClient) -> None:
    return


def take_back_nothing(self: RequestClient, request: Open) -> None:
    self._requests.take(request.id)


def renew_at_every_welcome(self: ClientSession, welcome: Any, now: float) -> None:
    self.renewals += not self._early
    original_welcomed(self, welcome, now)


original_take = Requests.take
original_kept = Outbox.kept
original_welcomed = ClientSession._welcomed

MUTATIONS: list[Mutation] = [
    (Requests, "late", forget_deadlines),
    (Requests, "lost", tell_nobody_of_a_loss),
    (Requests, "lost", give_up_what_may_run_twice),
    (Requests, "unanswered", never_ask_again),
    (Requests, "unanswered", ask_everything_again),
    (Requests, "take", answer_the_oldest),
    (RequestServer, "waited_for", run_what_was_redelivered),
    (Outbox, "kept", forget_what_another_server_may_have_run),
    (RequestClient, "renewed", tell_nobody_that_the_server_began_anew),
    (ClientSession, "_welcomed", renew_at_every_welcome),
]
