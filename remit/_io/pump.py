"""Client and server pumps: they move frames between a link and a protocol state machine, and supply the time."""

from __future__ import annotations

import logging
import select
import threading
import time
from collections.abc import Callable
from threading import get_ident
from typing import Final

from remit._io.connection_log import ConnectionLog
from remit._limited_log import LimitedLog
from remit._protocol.client_session import ESTABLISHED, ClientSession
from remit._protocol.server_sessions import ServerSessions
from remit._protocol.session import FOREVER, Session
from remit.errors import TransportError
from remit.transport import SERVER, Down, Link, Sent, Wakeable

logger = logging.getLogger("remit")
_ACCEPTED: Final = Sent.ACCEPTED  # Each access through the class costs 70 ns on CPython 3.11.

MAX_RECEIVE_FRAMES: Final = 64
"""Frames received in a row before replies to them are sent."""
MAX_SEND_FRAMES: Final = 64
"""Frames sent to one peer in a row before other peers get their turn."""
CHECK_INTERVAL_S: Final = 0.5
"""Seconds between two checks of the files on which the location of a server depends."""
REOPEN_INTERVAL_S: Final = 1.0
"""Seconds between attempts to open a new link to a silent server."""

Clock = Callable[[], float]


class _Pump:
    """A link and the lock under which threads hand it over. Every method must be called with `lock` held."""

    machine: ClientSession | ServerSessions

    def __init__(self, link: Link, clock: Clock) -> None:
        self.link = link
        self.lock = threading.RLock()
        """A lock that knows its owner: a signal handler or finalizer may call in a thread that holds it already."""
        self._interrupted = False
        """Whether an exception has left a method half done. The next exchange repairs the machine first."""
        self._clock = clock
        self._due = 0.0

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if there may be something to do."""
        self.link.owner = get_ident()
        self.link.wait(max(0.0, min(timeout, self._due - self._clock())), waker)

    def recover(self, *, waiting: bool = False) -> None:
        """Release `lock` after an exception in this thread, and repair link and sessions with the next exchange.

        The caller must be the outermost call of this thread that uses the pump. If it was ``waiting``, no frame that
        the link has returned is lost.
        """
        if self.lock._is_owned():  # type: ignore[attr-defined]
            self._interrupted = self._interrupted or not waiting
            self._recover_link()
            while self.lock._is_owned():  # type: ignore[attr-defined]
                self.lock.release()

    def _recover_link(self) -> bool:
        """Have the link release its locks and report what may be lost. Return whether it can be used further."""
        recover = getattr(self.link, "recover", None)
        return recover is not None and bool(recover())

    def close(self, linger: float) -> None:
        """Close the link within ``linger`` seconds."""
        self.link.owner = get_ident()
        self.link.close(linger)


class ClientPump(_Pump):
    """Moves frames between one link and a `ClientSession`. ``connect`` opens another link when this one is stale."""

    def __init__(
        self, machine: ClientSession, link: Link, connect: Callable[[], Link], *, clock: Clock = time.monotonic
    ) -> None:
        super().__init__(link, clock)
        self.machine: ClientSession = machine
        self._connect = connect
        self._reopen_at = 0.0
        self._intact = True
        """False after `recover` or `fail`: the next exchange comes first, since the link may have a `Down` to report. A
        request sent before would count as lost."""
        self._broken = ""
        """Why the link is in an unknown state, and is only closed; empty if it is not."""
        self._log = ConnectionLog(link, clock())

    @property
    def why(self) -> str:
        """Why the server has not accepted this client on the present connection; empty if it has. From any thread."""
        machine = self.machine
        if machine.refusal is not None:
            return machine.refusal.detail
        if machine.state is ESTABLISHED:
            return ""
        if reason := getattr(self.link, "why", ""):
            return reason
        if machine.session.peer is not None:
            return "the server is connected, but does not answer: is it ticked?"
        return machine.down_reason or "no connection: is a server there?"

    def exchange(self) -> bool:
        """Receive frames, handle timeouts, send frames. Return True if nothing is left to receive."""
        machine, now = self.machine, self._clock()
        if not (self._intact or self._restore(now)):
            return True
        link = self.link
        link.owner = get_ident()
        drained = False
        for _ in range(MAX_RECEIVE_FRAMES):
            arrival = link.receive()
            if arrival is None:
                drained = True
                break
            machine.handle_arrival(arrival, now)
        self._intact = True
        self._due = machine.handle_timeouts(now)
        if machine.link_stale:
            self._reopen(now)
        log = self._log
        if machine.state is not ESTABLISHED or not log.connected:
            log.update(self.why, now)
            self._due = min(self._due, log.due)
        self._send(now)
        return drained

    def flush(self) -> None:
        """Send the frames that window and link accept now, unless an exchange must come first."""
        if self._intact:
            self.link.owner = get_ident()
            self._send(self._clock())

    def _send(self, now: float) -> None:
        link, machine = self.link, self.machine
        session = machine.session
        session.send_blocked = False
        for _ in range(MAX_SEND_FRAMES):
            frame = machine.next_frame()
            if frame is None:
                break
            if link.send(SERVER, frame) is not _ACCEPTED:
                # GONE does not end the connection here: the link reports a lost server by Down.
                session.send_blocked = True
                break
            if not session.mark_sent(now):
                break
        if session.probe_at < self._due:
            self._due = session.probe_at

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Return after ``timeout`` seconds, or earlier if there may be something to do."""
        if not self._broken:
            super().wait(timeout, waker)
        elif waker is not None and self._reopen_at > self._clock():
            poll = select.poll()
            poll.register(waker, select.POLLIN)
            poll.poll(min(timeout, REOPEN_INTERVAL_S) * 1000)

    def fail(self, error: BaseException) -> None:
        """Open another link after `REOPEN_INTERVAL_S`, because of an unexpected error of an exchange."""
        self._intact = False
        self._broken = f"unexpected error: {error!r}"
        self._reopen_at = self._clock() + REOPEN_INTERVAL_S

    def _restore(self, now: float) -> bool:
        """Continue after `recover` or `fail`. Return whether the link can be used."""
        if self._interrupted:
            self.machine.repair(now)
            self._interrupted = False
        if self._broken:
            self.machine.handle_arrival(Down(SERVER, self._broken), now)
            self._reopen(now)
            self._due = self._reopen_at
        return not self._broken

    def _recover_link(self) -> bool:
        self._intact, self._due = False, 0.0
        if not super()._recover_link():
            self._broken = self._broken or "an exception interrupted its use"
        return not self._broken

    def _reopen(self, now: float) -> None:
        """Replace the link to a silent server, or a broken one. If that fails, try again later."""
        if now < self._reopen_at:
            return
        former = self.link
        if self._broken:
            _end_link(former)
        # Otherwise opened before the old link is closed: if that fails, frames may still arrive on the old one.
        try:
            link = self._connect()
        except TransportError as error:
            self._reopen_at = now + REOPEN_INTERVAL_S
            self._broken = self._broken and str(error)
            return
        link.owner = get_ident()
        self.link = link
        if not self._broken:
            self.machine.handle_arrival(Down(SERVER, "the server was silent for too long"), now)
        self.machine.link_stale, self._broken = False, ""
        _end_link(former)


def _end_link(link: Link) -> None:
    """Close a link in any state. Its frames are sent again on the next one."""
    try:
        link.owner = get_ident()
        link.close(0.0)
    except Exception:
        logger.exception("closing the link to %s failed; descriptors may stay open", link.location)


class ServerPump(_Pump):
    """Moves frames between one link and the `ServerSessions` of all its peers."""

    def __init__(self, machine: ServerSessions, link: Link, *, clock: Clock = time.monotonic) -> None:
        super().__init__(link, clock)
        self.machine: ServerSessions = machine
        self._check_at = 0.0 if hasattr(link, "check_location") else FOREVER
        """Monotonic time of the next `Link.check_location`."""
        self.location_error: TransportError | None = None
        """Why this server does not hold its location at present."""
        self._log = LimitedLog()
        self._dropped = 0  # As logged.
        self._reported = ""
        """Why the backend is not reachable, as logged."""
        self.drained_at = clock()
        """Monotonic time of the last receive that emptied the link. Peer silence is measured up to this moment."""

    @property
    def why(self) -> str:
        """Why clients cannot reach this server; empty if they can, or if it is not known."""
        return str(self.location_error or "") or getattr(self.link, "why", "")

    def exchange(self, *, hold_back: bool = False) -> bool:
        """Receive frames, handle timeouts, send frames. Return True if nothing is left to receive.

        With ``hold_back`` nothing is sent while events wait for dispatch; the caller dispatches them next. Raises
        LocationInUse or TransportError while the link has lost its location.
        """
        link, machine, now = self.link, self.machine, self._clock()
        link.owner = get_ident()
        if self._interrupted:
            self._repair(now)
        if now >= self._check_at:
            self._check_location(now)
        if self.location_error is not None:
            raise self.location_error
        drained = False
        for _ in range(MAX_RECEIVE_FRAMES):
            arrival = link.receive()
            if arrival is None:
                drained = True
                self.drained_at = now
                break
            machine.handle_arrival(arrival, now)
        if machine.dropped != self._dropped:
            self._dropped = machine.dropped
            text = "%s receives more than it dispatches, and drops events (%d): tick more often or raise queue_bytes"
            self._log.warning("dropped", text, link.location, self._dropped)
        self._due = min(machine.handle_timeouts(now, drained=drained), self._check_at)
        # Replies of listeners then share a frame with the acknowledgement: one send instead of two.
        if not hold_back or not machine.ready:
            self._send(now)
        return drained

    def _repair(self, now: float) -> None:
        self.machine.repair(now)
        self._interrupted = False

    def _check_location(self, now: float) -> None:
        # Kept for `exchange`: the keepalive thread ignores the error, and tick() must raise it.
        self._check_at = self._due = now + CHECK_INTERVAL_S
        why = getattr(self.link, "why", "")
        if bool(why) is not bool(self._reported):
            if why:
                logger.warning("the server on %s cannot be reached: %s", self.link.location, why)
            else:
                logger.info("the server on %s can be reached again", self.link.location)
            self._reported = why
        try:
            self.link.check_location()
            self.location_error = None
        except TransportError as error:
            if self.location_error is None:
                logger.warning("the server on %s lost its location: %s", self.link.location, error)
            self.location_error = error

    def flush(self) -> None:
        """Send the frames that windows and peers accept now."""
        now = self._clock()
        self.link.owner = get_ident()
        if self._interrupted:
            self._repair(now)
        self._send(now)

    def _send(self, now: float) -> None:
        machine = self.machine
        while machine.unknown_peer_replies:
            peer, frame = machine.unknown_peer_replies.popleft()
            # Dropped if the link is full: a peer without a session repeats its frame.
            self.link.send(peer, frame)
        for session in list(machine.writable):
            # Removed before sending: another thread may append an event and mark the session again during the send.
            # After an interrupt in between `_repair` marks all sessions.
            machine.writable.pop(session, None)
            if not self._flush_session(session, now):
                machine.writable[session] = None

    def _flush_session(self, session: Session, now: float) -> bool:
        """Send frames of one session. Return False if some remain that may be accepted soon."""
        for _ in range(MAX_SEND_FRAMES):
            if session.peer is None:
                return True
            frame = session.next_frame()
            if frame is None:
                return True
            sent = self.link.send(session.peer, frame)
            if sent is not _ACCEPTED:
                if sent is Sent.FULL:
                    return False
                self.machine.handle_arrival(Down(session.peer, "gone"), now)
                return True
            if not session.mark_sent(now):
                return True
        return False
