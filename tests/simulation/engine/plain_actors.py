"""Simulated plain ends: a server that handles, answers and publishes; a client that emits, asks and follows."""

from __future__ import annotations

from typing import Any, Final

from engine.client import SimulatedClient
from engine.delivery_oracle import Book
from engine.network import Host
from engine.pubsub_actors import Newsreader, Newsroom
from engine.request_oracle import FAILS, UNHEARD, Asker, Inquiry
from engine.server import SimulatedServer
from engine.virtual_clock import World
from remit.codec import EventMessage
from remit.event import Sender

__all__ = ["PlainClient", "PlainServer"]


FOLLOWING: Final = 0.5
"""Share of the clients that follow the news."""


class PlainServer(SimulatedServer):
    """Handles streams, answers questions, publishes news."""

    def __init__(self, world: World, host: Host, book: Book, *, limit: int, window: int, ttl: float) -> None:
        super().__init__(world, host, book, limit=limit, window=window, ttl=ttl)
        self.newsroom = book.newsrooms[self.serial] = Newsroom(self)

    def answer(self, wire: EventMessage, sender: Sender | None) -> tuple[bool, Any]:
        """Answer a question with twice its number."""
        (serial,) = wire.args
        if serial % UNHEARD == 0:
            return False, None
        self.book.inquiries[serial].run_once()
        if serial % FAILS == 0:
            raise ValueError(serial)
        return True, serial * 2


class PlainClient(SimulatedClient):
    """Emits a stream, asks, and perhaps follows the news."""

    def __init__(self, world: World, host: Host, book: Book, *, window: int) -> None:
        super().__init__(world, host, book, window=window)
        random = world.random
        self.stream = book.open()
        self.budget = 0
        """Events that it has yet to emit."""
        self.asker = Asker(self, book, self._judge)
        self.reader: Newsreader | None = None
        if random.random() < FOLLOWING:
            self.reader = Newsreader(
                self,
                book.newsrooms.__getitem__,
                when_full=random.choice(("drop_oldest", "drop_newest", "unsubscribe")),
                queue=random.choice((1, 5, 1000)),
                lag=random.choice((None, None, 0.5)),
            )

    def speak(self, count: int) -> None:
        """Emit so many events."""
        self.stream.emit(count, self.outbox)
        self.wake(self.world.now)

    def settled(self) -> None:
        """Compare what is confirmed with what was handled."""
        self.stream.confirm(self.outbox.streamed())

    def check(self) -> None:
        """Look at what must have ended."""
        self.asker.check()

    def successor(self) -> PlainClient:
        """Another one emits what this one has not."""
        heir = PlainClient(self.world, self.host, self.book, window=self.window)
        heir.budget, self.budget = self.budget, 0
        return heir

    def _judge(self, inquiry: Inquiry, answer: Any) -> None:
        if answer != inquiry.serial * 2:
            self.world.fail(f"question {inquiry.serial} got the answer {answer}, another one's")

    @property
    def idle(self) -> bool:
        """Whether all that was emitted is confirmed, all that was asked is answered, and the news are known."""
        stream = self.stream
        drained = not self.budget and stream.confirmed == stream.emitted == stream.handled
        return super().idle and drained

    def __str__(self) -> str:
        stream = self.stream
        return (
            f"{super().__str__()}; {stream.name!r}: {stream.emitted} emitted, {stream.handled} handled, "
            f"{stream.confirmed} confirmed"
        )
