"""Meeting: what the two of a pair say to each other: joining, signalling, parting, and who lost the seat."""

from __future__ import annotations

import contextlib
import secrets
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.jobs import Speaker
from remit._patterns.names import PAIR_CHECK, PAIR_ENDED, PAIR_JOIN, PAIR_SIGNAL, SERVER_RESTARTED
from remit._patterns.request_reply import Post, session_of
from remit._protocol.leases import ExclusiveSlot
from remit._protocol.session import Session
from remit.codec import EventMessage
from remit.errors import EmitError, FrameTooLarge, PairBusy, PeerLost
from remit.event import Sender

__all__ = ["Hear", "PairClient", "PairServer"]


NONE: Final = 0
"""An epoch that nobody has."""
FOREVER: Final = float("inf")
EPOCH_BITS: Final = 48
"""Bits of an owner's first epoch: what was meant for an owner that died must not fit another one's."""
Hear = Callable[[Any], None]
"""Called with a tuple of one signal's value, or with a PeerLost."""


class PairServer:
    """The one who has the seat to give. ``post`` sends an event to whoever holds it."""

    def __init__(
        self, router: EventRouter, post: Post, hear: Hear, *, lease: float, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.slot = ExclusiveSlot(lease=lease, first=secrets.randbits(EPOCH_BITS))
        router.register(PAIR_SIGNAL, self._signalled)
        router.register_request(PAIR_JOIN, self._join)
        router.register_request(PAIR_CHECK, self._present)
        router.on_session_closed(self.on_session_closed)
        self._post = post
        self._hear = hear
        self._lease = lease
        self._clock = clock
        self._seated = threading.Condition()

    def wait_for_member(self, deadline: float) -> bool:
        """Wait until somebody has the seat; False after ``deadline``."""
        with self._seated:
            while self.slot.holder is None:
                left = deadline - self._clock()
                if left <= 0:
                    return False
                self._seated.wait(left)
        return True

    def signal(self, value: Any) -> None:
        """Signal the holder. Raises PeerLost, CodecError, FrameTooLarge."""
        holder: Any = self.slot.holder
        if holder is None:
            raise PeerLost("the other one has left")
        try:
            self._post(holder, PAIR_SIGNAL, (self.slot.epoch, value))
        except EmitError as error:
            raise PeerLost(f"the other one has left: {error}") from error

    def advance(self, caught_up: float) -> None:
        """Take the seat from a holder that was silent for too long. What it said until ``caught_up`` has been heard."""
        holder: Any = self.slot.holder
        if holder is not None and self.slot.has_expired(caught_up - holder.last_received_at):
            self.leave()  # should it ever come back
            self.on_session_closed(holder)

    def leave(self) -> None:
        """Let the holder know that it is over."""
        holder: Any = self.slot.holder
        with contextlib.suppress(EmitError, FrameTooLarge):  # It has left just now.
            if holder is not None:
                self._post(holder, PAIR_ENDED, (self.slot.epoch,))

    def on_session_closed(self, session: Session) -> None:
        """A session has ended: if it held the seat, that is free."""
        if self.slot.release(session):
            self._hear(PeerLost("the other one has left, or is dead"))

    def _join(self, session: Session, _: float) -> tuple[int, float]:
        epoch = self.slot.claim(session)
        if epoch is None:
            raise PairBusy("two have met here already")
        with self._seated:
            self._seated.notify_all()
        return epoch, self._lease

    def _signalled(self, wire: EventMessage, sender: Sender | None, _: bool) -> None:
        session = session_of(sender)
        epoch, value = msgspec.convert(wire.args, tuple[int, Any])
        if self.slot.is_held_by(session, epoch):
            self._hear((value,))
        else:
            self._refuse(session, epoch)

    def _present(self, session: Session, epoch: int) -> bool:
        if self.slot.is_held_by(session, epoch):
            return True
        self.on_session_closed(session)
        return False

    def _refuse(self, session: Session, epoch: int) -> None:
        """Somebody speaks in an epoch that is over: if it got the seat anew, it does not know, and has parted."""
        with contextlib.suppress(EmitError, FrameTooLarge):  # It has left just now.
            self._post(session, PAIR_ENDED, (epoch,))
        self.on_session_closed(session)


class PairClient:
    """The one who takes the seat."""

    def __init__(self, router: EventRouter, client: Speaker, hear: Hear, *, lease: float) -> None:
        self.ended = ""
        """Why it is no longer one of two; empty while it is."""
        self.epoch = 0
        router.register(PAIR_SIGNAL, self._signalled)
        router.register(PAIR_ENDED, lambda wire, *_: self._parted(*wire.args))
        router.register(SERVER_RESTARTED, lambda *_: self._doubt())
        self._client = client
        self._hear = hear
        self._lease = lease

    def on_joined(self, answer: tuple[int, float]) -> float:
        """The owner has given the seat. Return the seconds within which each of the two has to hear of the other."""
        self.epoch, owners = msgspec.convert(answer, tuple[int, float])
        self._doubt()  # The owner may have begun anew since, and nobody would have noticed.
        return min(self._lease, owners)

    def signal(self, value: Any) -> None:
        """Signal the owner. Raises PeerLost, and what emitting raises."""
        why = self.lost_reason()
        if why:
            raise PeerLost(why)
        self._client.emit(PAIR_SIGNAL, self.epoch, value)

    def lost_reason(self) -> str:
        """Say why the owner is gone; empty while it is there."""
        if not self.ended and self._client.silence > self._lease:
            self.ended = f"nothing was heard of the other one for {self._lease} s"
            self._client.submit(PAIR_CHECK, NONE, timeout=FOREVER, idempotent=True)  # It may be there still.
        return self.ended

    def _signalled(self, wire: EventMessage, *_: Any) -> None:
        epoch, value = msgspec.convert(wire.args, tuple[int, Any])
        if epoch == self.epoch or not self.epoch:
            self._hear((value,))

    def _parted(self, epoch: int) -> None:
        if epoch == self.epoch:
            self._lose("the other one has left, or has taken us for dead")

    def _doubt(self) -> None:
        """Ask whether we are still one of two, once we are."""
        if self.epoch:
            asked = self._client.submit(PAIR_CHECK, self.epoch, timeout=FOREVER, idempotent=True)
            asked.add_done_callback(self._told)

    def _told(self, answer: Future[bool]) -> None:
        if not answer.exception() and not answer.result():
            self._lose("the other one has begun anew, or has taken us for dead")

    def _lose(self, why: str) -> None:
        self.ended = why
        self._hear(PeerLost(why))
