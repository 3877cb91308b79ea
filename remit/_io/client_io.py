"""Line: what a client holds while it is open: its link, what waits before it, and where what comes is taken to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from remit._io.dispatcher import Dispatch, Dispatcher
from remit._io.pump import ClientPump
from remit._io.send_queue import SendQueue
from remit._patterns.event_router import EventRouter
from remit._patterns.names import PROGRESS, REPLY, REQUEST
from remit._patterns.request_reply import RequestClient
from remit._protocol.client_session import ClientSession, ConnectionState
from remit._protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit.codec import Codec, find_codec
from remit.errors import SessionRefused, Undelivered
from remit.event import Event
from remit.location import Location
from remit.options import Options
from remit.transport import Link, Transport, Waker
from remit.transports.authenticated import share_rejected_counter

__all__ = ["IDLE_WAIT", "PARK", "Line", "LinkLock"]


PARK: Final = 0.002
"""Seconds for which the thread leaves the link alone after a caller has served it: the next request may be near."""
LONG: Final = 0.02
"""Seconds after which a caller is taken to serve for long: then the thread sleeps until it is told."""


class LinkLock:
    """Held by whoever serves the link. The thread `take`s and `release`s it; a caller borrows it in between."""

    def __init__(self) -> None:
        self.waker = Waker()
        """What ends the sleep of whoever serves."""
        self._held = threading.Lock()
        self._borrowing = threading.Lock()
        self._news = threading.Condition()
        self._lent = self._parked = self._asleep = self._called = self._ended = False
        self._lent_at = self._rest_until = 0.0

    def call(self) -> None:
        """Have whoever serves look up, and the thread come back if nobody does. From any thread."""
        self.waker.wake()
        if self._parked and not self._lent:
            self._recall()

    # -- the thread --------------------------------------------------------------------------------------------

    def take(self) -> bool:
        """Wait until the link is the thread's to serve; False at the end."""
        while not self._ended:
            if self._lent or time.monotonic() < self._rest_until:
                self._park()
            self._held.acquire()
            if not self._lent:
                return True
            self._held.release()
        return False

    def release(self) -> None:
        """Let go, so that a caller may have it."""
        self._held.release()

    def _park(self) -> None:
        """Let others serve the link. Come back when none has for a moment, or when called."""
        with self._news:
            self._parked = True
            while not self._ended and (self._lent or self._resting()):
                self._asleep = self._lent and self._long()
                # Looked at once more: whoever gives it back first says so, and then looks who sleeps.
                self._news.wait(None if self._asleep and self._lent else PARK)
            self._parked = self._called = self._asleep = False

    def _resting(self) -> bool:
        return not self._called and time.monotonic() < self._rest_until

    def _long(self) -> bool:
        return time.monotonic() - self._lent_at > LONG

    # -- a caller ----------------------------------------------------------------------------------------------

    def borrow(self) -> bool:
        """Have the thread let go of the link; False if another caller has it. `give_back` it soon."""
        if not self._borrowing.acquire(blocking=False):
            return False
        self._lent_at = time.monotonic()
        self._lent = True
        if not self._parked:
            self.waker.wake()
        self._held.acquire()
        return True

    def give_back(self) -> None:
        """Serve the link no more. The thread waits for a moment whether another caller will, unless it is called."""
        self._rest_until = time.monotonic() + PARK
        self._lent = False
        asleep = self._asleep
        self._held.release()
        self._borrowing.release()
        if asleep:
            with self._news:
                self._news.notify()

    # -- ending ------------------------------------------------------------------------------------------------

    def end(self) -> None:
        """Have the thread, and a caller that serves, come to their end."""
        self._ended = True
        self.waker.wake()
        self._recall()

    def close(self) -> None:
        """Give the descriptors back, once nobody serves any more."""
        self.waker.close()

    def _recall(self) -> None:
        with self._news:
            self._called = True
            self._news.notify()


IDLE_WAIT: Final = 60.0
"""Seconds that whoever serves an idle link sleeps at the most; whatever happens wakes it."""


class Line:
    """An open link and its queues, for whoever serves them. It starts no thread, and does nothing by itself.

    ``wake`` is called when something waits in the gate that nobody is about to look at.
    """

    def __init__(
        self,
        transport: Transport,
        location: Location,
        settings: Options,
        *,
        codec: Codec | None,
        router: EventRouter,
        dispatch: Dispatch,
        wake: Callable[[], None],
    ) -> None:
        def connect() -> Link:
            return transport.connect(location)

        link = connect()
        capabilities = link.capabilities
        self._codec = codec or find_codec(settings.codec)
        self.outbox = Outbox(
            self._codec,
            max_frame=capabilities.max_frame,
            window_events=settings.window,
            window_bytes=min(WINDOW_BYTES, capabilities.window or WINDOW_BYTES),
            sequenced=settings.delivery != "at_most_once",
        )
        self.machine = ClientSession(
            self._codec, self.outbox, max_frame=capabilities.max_frame, heartbeat=settings.heartbeat
        )
        share_rejected_counter(transport, self.machine)
        self.endpoint = ClientPump(self.machine, link, connect)
        self.wheel = LinkLock()
        """Who serves."""
        self.gate = SendQueue(self.outbox, settings, self._codec.encode, capabilities.max_frame - HEAD_BYTES)
        self.asking = RequestClient(self._codec, self.outbox, self._post, self._cancel)
        self.inbound = Dispatcher(router, dispatch, self.wheel.call)
        router.register_io(REPLY, self.asking.on_reply)
        router.register_io(PROGRESS, self.asking.on_progress)
        self.closing = False
        """Nothing more will come, and nothing more be confirmed: whoever waits for it waits no longer."""
        self._telling = 0
        """Ident of the thread that tells whoever waits for an answer, and runs the callbacks of futures."""
        self._wake = wake

    # -- serving -----------------------------------------------------------------------------------------------

    def pump(self) -> bool:
        """Receive, send, and tell those who wait; True if nothing is left to receive. Never waits."""
        with self.endpoint.lock:
            drained = self.endpoint.pump()
        if self.gate.waiting:
            self.gate.opened()
        self._telling = threading.get_ident()
        try:
            self.inbound.take_in(self.machine, self.asking, time.monotonic())
        finally:
            self._telling = 0
        return drained

    def sleep(self, seconds: float) -> None:
        """Wait until something comes, somebody calls, or a request is late; ``seconds`` at the most."""
        with self.endpoint.lock:
            if not self.closing:
                until = min(seconds, self.asking.next_deadline - time.monotonic()) if len(self.asking) else seconds
                self.endpoint.wait(max(0.0, until), self.wheel.waker)
            self.wheel.waker.clear()

    def drive(self, seconds: float) -> None:
        """Wait for something to come, at the most ``seconds``, and take it in."""
        self.sleep(seconds)
        self.pump()

    @property
    def in_callback(self) -> bool:
        """Whether the calling thread serves the link just now, and would wait for itself."""
        return self._telling == threading.get_ident()

    @property
    def sendable(self) -> bool:
        """Whether something may leave now: a transport that refused the next frame says itself when to try again."""
        return self.machine.has_sendable_events() and not self.machine.session.send_blocked

    # -- how it stands -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self.machine.state is ConnectionState.ESTABLISHED

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: all is confirmed, or nothing will be."""
        return self.outbox.all_done or self.machine.refusal is not None or self.closing

    def check(self) -> None:
        """Raise SessionRefused if the server has refused this client."""
        if self.machine.refusal is not None:
            raise SessionRefused(self.machine.refusal.reason, self.machine.refusal.detail)

    def stats(self) -> dict[str, int]:
        """Return counters of the queue, the window and the connection."""
        session = self.machine.session
        return {
            "queued": len(self.gate.pending),
            "requests": len(self.asking),
            "unconfirmed": self.outbox.unconfirmed,
            "emitted": self.outbox.last + len(self.gate.pending),
            "connections": session.generation,
            "duplicates": session.inbox.duplicates,
            "dropped": self.gate.dropped.total(),
            "rejected": self.machine.rejected.total() + self.inbound.malformed,
        }

    # -- requests ----------------------------------------------------------------------------------------------

    def _post(self, name: str, data: bytes) -> bool:
        """Queue an encoded event; False: it was dropped."""
        if not self.gate.admit(name, len(data)):
            return False
        self.gate.pending.append(data)
        if self.gate.idle:
            self._wake()
        return True

    def _cancel(self, request: int) -> None:
        self.machine.session.abandoned_requests.append(request)
        if not self.closing:
            self.wheel.call()

    # -- ending ------------------------------------------------------------------------------------------------

    def hang_up(self, linger: float) -> None:
        """Say goodbye and close the link within ``linger`` seconds, when nobody serves it any more."""
        with self.endpoint.lock:
            self.machine.session.ack_delay = 0.0
            self.machine.queue_bye()
            self.endpoint.flush()
            self.endpoint.close(linger)
        self.wheel.close()
        self.asking.close()

    def undelivered(self) -> Undelivered | None:
        """Return what was not confirmed, as an error to raise."""
        fates: dict[str, list[Event]] = {"received": [], "unknown": [], "never_sent": []}
        for fate, data in self.outbox.unfinished():
            wire = self._codec.decode(self._codec.join(b"", [data]))[0]
            if wire.name != REQUEST:  # Whoever asked is told by the answer's future.
                fates[fate].append(wire.event())
        if not any(fates.values()):
            return None
        return Undelivered(why=self._why(), **fates)

    def _why(self) -> str:
        """Say what kept events from being delivered, if it is known."""
        if self.machine.refusal is not None:
            return self.machine.refusal.detail
        return "" if self.machine.instance else "no server was met: is one there, and is it ticked?"
