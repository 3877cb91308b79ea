"""Both ends of an exclusive pair: the server grants its one slot to one client at a time, each time in a new epoch.

| event at the server               | slot is free       | slot is taken                                               |
|-----------------------------------|--------------------|-------------------------------------------------------------|
| PAIR_JOIN                         | granted, epoch + 1 | the same epoch for the member itself, else PairBusy         |
| PAIR_SIGNAL of the member's epoch |                    | a signal                                                    |
| PAIR_SIGNAL of another epoch      | PAIR_ENDED         | PAIR_ENDED; freed if its member sent it                     |
| PAIR_CHECK                        | False              | True for its epoch; else False, freed if its member sent it |
| session closed, lease expired     |                    | freed; the caller of wait() gets PeerLost                   |
"""

from __future__ import annotations

import contextlib
import queue
import secrets
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any, Final

import msgspec

from remit._patterns.event_router import EventRouter
from remit._patterns.names import PAIR_CHECK, PAIR_ENDED, PAIR_JOIN, PAIR_SIGNAL, SERVER_RESTARTED
from remit._patterns.request_reply import Post, session_of
from remit._protocol.session import FOREVER, Session
from remit.codec import EventMessage
from remit.errors import EmitError, FrameTooLarge, PairBusy, PeerLost
from remit.event import Sender
from remit.transport import next_item

if TYPE_CHECKING:
    from remit.client import Client


NO_EPOCH: Final = 0
EPOCH_BITS: Final = 48
"""Random bits of a server's first epoch: signals for a server that died must not be accepted by its successor."""
TAKEN_CHECK_INTERVAL_S: Final = 0.1
"""Interval at which a waiting thread checks whether the slot is taken, if another one was woken for it."""
OnSignal = Callable[[Any], None]
"""Called with a tuple of one signal's value, or with PeerLost, in the order in which they happened."""


class PairServer:
    """The member that grants the slot. ``post`` sends an event to the other member."""

    def __init__(
        self,
        router: EventRouter,
        post: Post,
        on_signal: OnSignal,
        *,
        lease: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # Only the thread that ticks the server changes the slot, so it needs no lock.
        self.holder: Session | None = None
        """Session of the second member; None while the slot is free."""
        self.epoch = secrets.randbits(EPOCH_BITS)
        """Number of the holder. It fences off the messages of earlier holders."""
        router.register(PAIR_SIGNAL, self._handle_signal)
        router.request_handlers[PAIR_JOIN] = self._join
        router.request_handlers[PAIR_CHECK] = self._check
        router.session_closed.append(self.on_session_closed)
        self._post = post
        self._on_signal = on_signal
        self._lease = lease
        self._clock = clock
        # Not a Condition: after an interrupt of a waiting thread its lock could stay locked.
        self._taken: queue.SimpleQueue[None] = queue.SimpleQueue()
        """Wakes a thread that waits in signal() when the slot is taken."""

    def wait_for_member(self, deadline: float) -> bool:
        """Wait until the slot is taken; return False after ``deadline``."""
        while self.holder is None:
            left = deadline - self._clock()
            if left <= 0:
                return False
            with contextlib.suppress(queue.Empty):
                next_item(self._taken, min(left, TAKEN_CHECK_INTERVAL_S))
        return True

    def signal(self, value: Any) -> None:
        """Signal the other member. Raises PeerLost, CodecError, FrameTooLarge."""
        holder = self.holder
        if holder is None:
            raise PeerLost("the other member has left")
        try:
            self._post(holder, PAIR_SIGNAL, (self.epoch, value))
        except EmitError as error:
            raise PeerLost(f"the other member has left: {error}") from error

    def advance(self, caught_up: float) -> None:
        """Free the slot if its lease has expired. ``caught_up`` is the time of the last read that emptied the link."""
        holder = self.holder
        if holder is not None and caught_up - holder.last_received_at > self._lease:
            self.leave()  # The other member may be alive and reconnect.
            self.on_session_closed(holder)

    def leave(self) -> None:
        """Send PAIR_ENDED to the other member."""
        if self.holder is not None:
            self._send_ended(self.holder, self.epoch)

    def on_session_closed(self, session: Session) -> None:
        """Free the slot if this session holds it."""
        if self.holder is session:
            self.holder = None
            self._on_signal(PeerLost("the other member has left, or is dead"))

    def _join(self, session: Session, _: float) -> tuple[int, float]:
        # PAIR_JOIN is idempotent: the holder may repeat it, and gets the same epoch.
        if self.holder is None:
            # In this order: another thread that sees the new holder must read its epoch.
            self.epoch += 1
            self.holder = session
        if self.holder is not session:
            raise PairBusy("this pair already has two members; a third cannot connect")
        self._taken.put(None)
        return self.epoch, self._lease

    def _handle_signal(self, message: EventMessage, sender: Sender | None, _: bool) -> None:
        session = session_of(sender)
        epoch, value = msgspec.convert(message.args, tuple[int, Any])
        if self._holds_slot(session, epoch):
            self._on_signal((value,))
        else:
            # A session that holds the slot in a newer epoch has not received that epoch, and can never use it.
            self._send_ended(session, epoch)
            self.on_session_closed(session)

    def _check(self, session: Session, epoch: int) -> bool:
        holds = self._holds_slot(session, epoch)
        if not holds:
            self.on_session_closed(session)  # As in `_handle_signal`.
        return holds

    def _holds_slot(self, session: Session, epoch: int) -> bool:
        return self.holder is session and epoch == self.epoch

    def _send_ended(self, session: Session, epoch: int) -> None:
        with contextlib.suppress(EmitError, FrameTooLarge):  # The session may have ended.
            self._post(session, PAIR_ENDED, (epoch,))


class PairClient:
    """The member that joins."""

    def __init__(self, router: EventRouter, client: Client, on_signal: OnSignal, *, lease: float) -> None:
        self.ended = ""
        """Why the pair has ended; empty while it has two members."""
        self.epoch = NO_EPOCH
        router.register(PAIR_SIGNAL, self._handle_signal)
        router.register(PAIR_ENDED, lambda message, *_: self._handle_ended(*message.args))
        router.register(SERVER_RESTARTED, lambda *_: self._check_membership())
        self._client = client
        self._on_signal = on_signal
        self._lease = lease

    def on_joined(self, answer: tuple[int, float]) -> float:
        """Handle the reply to PAIR_JOIN; return the lease in seconds, the shorter one of both members."""
        self.epoch, server_lease = msgspec.convert(answer, tuple[int, float])
        # If the server restarted after its reply and before this line, SERVER_RESTARTED found no epoch to check.
        self._check_membership()
        return min(self._lease, server_lease)

    def signal(self, value: Any) -> None:
        """Signal the other member. Raises PeerLost, and what emitting raises."""
        why = self.lost_reason()
        if why:
            raise PeerLost(why)
        self._client.emit(PAIR_SIGNAL, self.epoch, value)

    def lost_reason(self) -> str:
        """Return why the pair has ended, or an empty text while it has two members."""
        if not self.ended and self._client.silence > self._lease:
            self.ended = f"the other member was silent for {self._lease} s"
            # This frees the slot if the server is alive and still considers this client its member.
            self._client.submit(PAIR_CHECK, NO_EPOCH, timeout=FOREVER, idempotent=True)
        return self.ended

    def _handle_signal(self, message: EventMessage, *_: Any) -> None:
        epoch, value = msgspec.convert(message.args, tuple[int, Any])
        if epoch == self.epoch or not self.epoch:  # A signal may arrive before the reply that names the epoch.
            self._on_signal((value,))

    def _handle_ended(self, epoch: int) -> None:
        if epoch == self.epoch:  # Otherwise it is a late event of an earlier pair.
            self._end("the other member has left, or considered this one dead")

    def _check_membership(self) -> None:
        if self.epoch:
            future = self._client.submit(PAIR_CHECK, self.epoch, timeout=FOREVER, idempotent=True)
            future.add_done_callback(self._on_checked)

    def _on_checked(self, future: Future[bool]) -> None:
        if not future.exception() and not future.result():
            self._end("the other member has restarted, or considered this one dead")

    def _end(self, why: str) -> None:
        self.ended = why
        self._on_signal(PeerLost(why))
