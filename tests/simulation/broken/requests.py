"""Broken questions: answers that come too late, twice, or never."""

from __future__ import annotations

from typing import Any

from broken import Mutation
from remit._patterns.request_reply import RequestClient, RequestServer
from remit._protocol.client_session import ClientSession
from remit._protocol.outbox import Outbox, TrackedEvent
from remit._protocol.requests import OpenRequests, Request

Open = Request[Any]


def forget_deadlines(self: OpenRequests[Any], now: float) -> list[Open]:
    return []


def tell_nobody_of_a_loss(self: OpenRequests[Any], may_have_run: Any) -> list[Open]:
    return []


def give_up_what_may_run_twice(self: OpenRequests[Any], may_have_run: Any) -> list[Open]:
    return [each for each in self.snapshot() if self.pop(each.id)]


def never_ask_again(self: OpenRequests[Any], is_done: Any) -> list[Open]:
    return []


def ask_everything_again(self: OpenRequests[Any], is_done: Any) -> list[Open]:
    return list(self.snapshot())


def answer_the_oldest(self: OpenRequests[Any], identifier: int, *, original: Any) -> Open | None:
    return original(self, min(self._open, default=identifier))


def run_what_was_redelivered(self: RequestServer, session: Any, question: Any, redelivered: bool) -> bool:
    return True


def forget_what_another_server_may_have_run(self: Outbox, event: TrackedEvent) -> bool:
    return self.is_done(event)


def tell_nobody_that_the_server_began_anew(self: RequestClient) -> None:
    return


def renew_at_every_welcome(self: ClientSession, welcome: Any, now: float, *, original: Any) -> None:
    self.server_restarts += not self._may_send_early
    original(self, welcome, now)


MUTATIONS: list[Mutation] = [
    (OpenRequests, "expired", forget_deadlines),
    (OpenRequests, "lost", tell_nobody_of_a_loss),
    (OpenRequests, "lost", give_up_what_may_run_twice),
    (OpenRequests, "resendable", never_ask_again),
    (OpenRequests, "resendable", ask_everything_again),
    (OpenRequests, "get", answer_the_oldest),
    (RequestServer, "should_answer", run_what_was_redelivered),
    (Outbox, "may_have_run_before", forget_what_another_server_may_have_run),
    (RequestClient, "on_server_restart", tell_nobody_that_the_server_began_anew),
    (ClientSession, "_handle_welcome", renew_at_every_welcome),
]
