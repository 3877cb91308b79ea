"""Line: what a client holds while it is open: its link, what waits before it, and where what comes is taken to."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from remit.codec import Codec, find_codec
from remit.endpoint import ClientEndpoint
from remit.ends.inbound import Dispatch, Inbound
from remit.ends.outgate import Outgate
from remit.ends.wheel import Wheel
from remit.errors import SessionRefused, Undelivered
from remit.event import Event
from remit.keyed import count_with
from remit.location import Location
from remit.patterns.asking import PROGRESS, REPLY, REQUEST, Asking
from remit.protocol.connector import Connector, State
from remit.protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit.settings import Settings
from remit.transport import Link, Transport

__all__ = ["IDLE_WAIT", "Line"]

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
        settings: Settings,
        *,
        codec: Codec | None,
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
        self.machine = Connector(
            self._codec, self.outbox, max_frame=capabilities.max_frame, heartbeat=settings.heartbeat
        )
        count_with(transport, self.machine)
        self.endpoint = ClientEndpoint(self.machine, link, connect)
        self.wheel = Wheel()
        """Who serves."""
        self.gate = Outgate(self.outbox, settings, self._codec.encode, capabilities.max_frame - HEAD_BYTES)
        self.asking = Asking(self._codec, self.outbox, self._post, self._cancel)
        self.inbound = Inbound(dispatch, self.wheel.call)
        self.inbound.urgent |= {REPLY: self.asking.heard, PROGRESS: self.asking.progressed}
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
                until = min(seconds, self.asking.due - time.monotonic()) if len(self.asking) else seconds
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
        return self.machine.sendable() and not self.machine.session.stuck

    # -- how it stands -----------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self.machine.state is State.UP

    @property
    def settled(self) -> bool:
        """Whether there is nothing to wait for: all is confirmed, or nothing will be."""
        return self.outbox.empty or self.machine.refusal is not None or self.closing

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
        self.machine.session.given_up.append(request)
        if not self.closing:
            self.wheel.call()

    # -- ending ------------------------------------------------------------------------------------------------

    def hang_up(self, linger: float) -> None:
        """Say goodbye and close the link within ``linger`` seconds, when nobody serves it any more."""
        with self.endpoint.lock:
            self.machine.session.ack_delay = 0.0
            self.machine.bye()
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
