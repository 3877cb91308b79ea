"""Endpoint: the pump: the only place where a protocol machine meets a link and a clock."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Final

from remit._protocol.client_session import ClientSession
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import Received, Session
from remit.errors import TransportError
from remit.transport import SERVER, Down, Link, Sent, Wakeable

__all__ = ["ClientPump", "ServerPump"]


PUMP_FRAMES: Final = 64
"""Frames received in one go before what they caused is sent."""
FLUSH_FRAMES: Final = 64
"""Frames sent to one peer in one go before others have their turn."""

REOPEN: Final = 1.0
"""Seconds between two tries to open another link to a server that is silent."""

Clock = Callable[[], float]


class _Endpoint:
    """A link, handed from thread to thread under `lock`, and the clock."""

    def __init__(self, link: Link, clock: Clock) -> None:
        self.link = link
        self.lock = threading.Lock()
        """Whoever pumps, flushes, waits or closes holds it: it is what hands the link over."""
        self._clock = clock
        self._due = 0.0

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if there is something to pump. Under `lock`."""
        self.link.owner = threading.get_ident()
        self.link.wait(max(0.0, min(timeout, self._due - self._clock())), waker)

    def close(self, linger: float) -> None:
        """End the link within ``linger`` seconds. Under `lock`."""
        self.link.owner = threading.get_ident()
        self.link.close(linger)


class ClientPump(_Endpoint):
    """A client's link and its `ClientSession`. ``connect`` opens another link when this one has to be given up."""

    def __init__(
        self, machine: ClientSession, link: Link, connect: Callable[[], Link], *, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(link, clock)
        self.machine = machine
        self._connect = connect
        self._reopen_at = 0.0

    def pump(self) -> bool:
        """Receive, do what time demands, send. True if nothing is left to receive. Under `lock`."""
        link, machine, now = self.link, self.machine, self._clock()
        link.owner = threading.get_ident()
        drained = False
        for _ in range(PUMP_FRAMES):
            arrival = link.receive()
            if arrival is None:
                drained = True
                break
            machine.handle_arrival(arrival, now)
        self._due = machine.handle_timeouts(now)
        if machine.link_stale:
            self._reopen(now)
        self.flush()
        return drained

    def flush(self) -> None:
        """Send what may leave now. Under `lock`."""
        link, machine, now = self.link, self.machine, self._clock()
        link.owner = threading.get_ident()
        machine.session.send_blocked = False
        for _ in range(FLUSH_FRAMES):
            frame = machine.next_frame()
            if frame is None:
                break
            if link.send(SERVER, frame) is not Sent.ACCEPTED:
                # GONE is no Down: the link itself will say when its server has left.
                machine.session.send_blocked = True
                break
            machine.session.mark_sent(now)
        self._due = min(self._due, machine.session.probe_at)

    def events(self) -> Received | None:
        """Return events from the server that wait for their listeners. Under `lock`."""
        return self.machine.ready.popleft() if self.machine.ready else None

    def _reopen(self, now: float) -> None:
        """The server has been silent for too long: begin again on a new link, once there is one to be had."""
        if now < self._reopen_at:
            return
        try:
            link = self._connect()
        except TransportError:
            self._reopen_at = now + REOPEN
            return
        self.link.close(0.0)
        self.machine.link_stale = False
        self.machine.handle_arrival(Down(SERVER, "silent"), now)
        self.link = link
        self.link.owner = threading.get_ident()


class ServerPump(_Endpoint):
    """A server's link and its `ServerSessions`."""

    def __init__(self, machine: ServerSessions, link: Link, *, clock: Clock = time.monotonic) -> None:
        super().__init__(link, clock)
        self.machine = machine
        self.caught_up = clock()
        """The moment until which everything that came has been received: what is silent was silent until then."""

    def pump(self, *, hold_back: bool = False) -> bool:
        """Receive, do what time demands, send. True if nothing is left to receive. Under `lock`.

        With ``hold_back`` nothing is sent yet if there are events to be handled: who asks for that handles them now.
        """
        link, machine, now = self.link, self.machine, self._clock()
        link.owner = threading.get_ident()
        drained = False
        for _ in range(PUMP_FRAMES):
            arrival = link.receive()
            if arrival is None:
                drained = True
                self.caught_up = now
                break
            machine.handle_arrival(arrival, now)
        self._due = machine.handle_timeouts(now, drained=drained)
        # While events wait for their listeners, what those cause shares the way with the acknowledgement.
        if not hold_back or not machine.ready:
            self.flush()
        return drained

    def flush(self) -> None:
        """Send what may leave now. Under `lock`."""
        machine, now = self.machine, self._clock()
        self.link.owner = threading.get_ident()
        while machine.unknown_peer_replies:
            peer, frame = machine.unknown_peer_replies.popleft()
            # Not kept if it is not taken: whoever has no session asks again.
            self.link.send(peer, frame)
        for session in list(machine.writable):
            # Taken out first: what another thread adds while this one sends counts anew.
            machine.writable.pop(session, None)
            if not self._flush_session(session, now):
                machine.writable[session] = None

    def _flush_session(self, session: Session, now: float) -> bool:
        """Send what one session may send now; True if nothing is left that could be tried again soon."""
        for _ in range(FLUSH_FRAMES):
            if session.peer is None:
                return True
            frame = session.next_frame()
            if frame is None:
                return True
            sent = self.link.send(session.peer, frame)
            if sent is Sent.FULL:
                return False
            if sent is Sent.GONE:
                self.machine.peer_gone(session, now)
                return True
            session.mark_sent(now)
        return False

    def events(self) -> Received | None:
        """Return events that wait for their listeners. Under `lock`."""
        return self.machine.ready.popleft() if self.machine.ready else None
