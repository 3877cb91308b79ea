"""Simulated news: what servers publish, what followers hear, and whether the gaps that they are told of are exact."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from engine.client import SimulatedClient
from engine.server import SimulatedServer
from remit._patterns.names import PUBLISHED, SERVER_RESTARTED, SUBSCRIBE, UNSUBSCRIBE, UNSUBSCRIBED
from remit._patterns.pubsub import Publisher, SubscriberState, Subscription
from remit._patterns.request_reply import session_of
from remit._protocol.session import Session
from remit._protocol.subscriptions import SubscriberQueue
from remit.codec import EventMessage
from remit.event import Sender

__all__ = ["Newsreader", "Newsroom"]


TOPICS: Final = ("news.a", "news.b")
PATTERNS: Final = (*TOPICS, "news.*")


class Newsroom:
    """The publications of one server instance: numbered for each pattern, as those who follow it should hear them."""

    def __init__(self, server: SimulatedServer) -> None:
        self.serial = server.serial
        self.published = dict.fromkeys(PATTERNS, 0)
        self.began: dict[tuple[bytes, int], tuple[Session, int]] = {}
        """For each subscription: the session that has it, and how much had been published before it."""
        self.queues: dict[tuple[bytes, int], SubscriberQueue] = {}
        """For each subscription: its last queue, which counts what it dropped."""
        self._publishing = Publisher(server.has_more, server.world.clock)
        self._server = server
        server.router.session_closed.append(self._publishing.remove_session)
        server.router.request_handlers[SUBSCRIBE] = self._subscribe
        server.router.register(UNSUBSCRIBE, self._unsubscribed)

    def publish(self, count: int) -> None:
        """Publish so many."""
        for _ in range(count):
            self._publish_one(self._server.world.random.choice(TOPICS))

    def _publish_one(self, topic: str) -> None:
        book = self._server.book
        for pattern in (topic, "news.*"):
            self.published[pattern] += 1
        numbers = self.published[topic], self.published["news.*"]
        book.counts["publications"] += self._publishing.publish(topic, (self.serial, *numbers), {}, keep=False)

    def _subscribe(self, session: Session, identifier: int, pattern: str, *options: Any) -> None:
        known, _ = self.began.get((session.id, identifier), (None, 0))
        if known is not session:
            self.began[session.id, identifier] = session, self.published[pattern]
        self._publishing.subscribe(session, identifier, pattern, *options)
        self.queues[session.id, identifier] = self._publishing._subscribers[session][identifier]

    def _unsubscribed(self, wire: EventMessage, sender: Sender | None, _: bool) -> None:
        self._publishing.unsubscribe(session_of(sender), *wire.args)


class Newsreader:
    """One client's subscription, renewed as `Client` renews it, and what it should have heard."""

    def __init__(
        self,
        client: SimulatedClient,
        newsroom: Callable[[int], Newsroom],
        *,
        when_full: str,
        queue: int,
        lag: float | None,
    ) -> None:
        self._client = client
        self._newsroom = newsroom
        self._options = queue, when_full, lag, False, 1 << 20
        self._following = SubscriberState()
        self._pattern = client.world.random.choice(PATTERNS)
        self._server = 0
        self._last: int | None = None
        self._gap = 0
        self._skipped = 0
        """Number of publications of this server that were reported as missing."""
        self.settled = False
        """Whether the server has confirmed the subscription."""
        self.subscription: Subscription
        register = client.router.register
        register(PUBLISHED, lambda wire, *_: self._following.on_publication(client.book.codec, wire))
        register(UNSUBSCRIBED, self._unsubscribed)
        register(SERVER_RESTARTED, lambda *_: self._renewed())
        self._subscribe()

    def _subscribe(self) -> None:
        self._last, self.settled = None, False
        self.subscription = Subscription(self._pattern, self._heard, self._options, self._missed, pass_event=False)
        self._following.active[self.subscription.id] = self.subscription
        self._ask(self.subscription)

    def _ask(self, subscription: Subscription) -> None:
        future = self._client.submit(SUBSCRIBE, subscription.id, subscription.pattern, *self._options, idempotent=True)
        future.add_done_callback(self._confirmed)

    def _confirmed(self, future: Future[Any]) -> None:
        future.result()
        self.settled = True

    def _renewed(self) -> None:
        """As `Client` does: subscribe again with a server that knows nothing of it."""
        for subscription in tuple(self._following.active.values()):
            subscription._on_server_restart()  # Only the client calls it; this is its simulated twin.
            self._ask(subscription)

    def _unsubscribed(self, wire: EventMessage, *_: Any) -> None:
        self._following.on_unsubscribed(wire)
        if self.subscription.ended:
            self._client.book.counts["subscriptions ended"] += 1
            self._client.world.after(self._client.world.random.random(), self._again)

    def _again(self) -> None:
        if self._client.alive and self.subscription.ended:
            self._subscribe()

    def _missed(self, missing: int | None) -> None:
        if missing is None:
            self._last = None
            return
        if missing < 1 or self._gap:
            self._client.world.fail(f"{self._client}: a gap of {missing} is told, after {self._gap}")
        self._gap = missing
        self._client.book.counts["gaps"] += 1

    def _heard(self, server: int, of_topic: int, of_all: int) -> None:
        number = of_all if self._pattern == "news.*" else of_topic
        last = self._begin(server) if self._last is None else self._last
        if self._last is not None and server != self._server:
            self._client.world.fail(f"{self._client} hears of another server without being told that it began anew")
        missing, self._gap = self._gap, 0
        if number - last - 1 != missing:
            self._client.world.fail(
                f"{self._client} hears publication {number} of {self._pattern} after {last}, and was told of {missing} "
                f"missing, not {number - last - 1}"
            )
        self._skipped += missing
        dropped = self._newsroom(server).queues[self._key].dropped
        if self._skipped > dropped:
            self._client.world.fail(
                f"{self._client} counted {self._skipped} missing publications of {self._pattern}, but the server "
                f"dropped {dropped}"
            )
        self._server, self._last = server, number
        self._client.book.counts["publications heard"] += 1

    def _begin(self, server: int) -> int:
        self._skipped = 0
        return self._newsroom(server).began[self._key][1]

    @property
    def _key(self) -> tuple[bytes, int]:
        return self._client.machine.session.id, self.subscription.id

    def up_to_date(self, room: Newsroom) -> bool:
        """Whether it has heard the last that there was."""
        if self.subscription.ended or not self.settled:
            return False
        return self._server == room.serial and self._last == room.published[self._pattern]
