"""Keeping: what a server holds while it is open: its link, what wakes it, and a thread that keeps it alive unticked."""

from __future__ import annotations

import contextlib
import functools
import itertools
import selectors
import threading
import time
import weakref
from collections.abc import Callable
from typing import Any, Final

from remit._io.pump import ServerPump
from remit._protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit._protocol.session import Session
from remit.codec import Codec, shortened
from remit.errors import EmitError, FrameTooLarge, QueueFull, TransportError
from remit.event import Sender
from remit.options import Options
from remit.transport import Capabilities, Wakeable, Waker

__all__ = ["PATIENCE", "ClientSender", "ServerIO", "TickLock"]


class TickLock:
    """Whose turn it is to tick a server: one thread's at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while somebody ticks."""
        self.thread = 0
        """Ident of the thread that ticks, or ticked last."""


class ClientSender:
    """Gives events to the outboxes of a server's sessions. ``reach`` opens the server, or says why it is not open."""

    keeping: ServerIO
    """What keeps the endpoint."""

    def __init__(self, reach: Callable[[], ServerPump], turns: TickLock) -> None:
        self.endpoint: ServerPump | None = None
        """The server's, while it is open."""
        self._reach = reach
        self._turns = turns
        self._settings = Options()
        self._max_frame = self._window_bytes = 0

    def limit(self, settings: Options, capabilities: Capabilities) -> None:
        """Note how much may be under way to one client."""
        self._settings = settings
        self._max_frame = capabilities.max_frame
        self._window_bytes = min(WINDOW_BYTES, capabilities.window or WINDOW_BYTES)

    @property
    def largest(self) -> int:
        """Bytes that one event may have."""
        return self._max_frame - HEAD_BYTES

    def outbox(self, codec: Codec, max_frame: int) -> Outbox:
        """Make the outbox of a new session, whose client takes frames of ``max_frame`` bytes."""
        return Outbox(
            codec,
            max_frame=min(self._max_frame, max_frame),
            window_events=self._settings.window,
            window_bytes=self._window_bytes,
        )

    def sender(self, session: Session) -> Sender:
        """Return the client of a session as listeners see it."""
        if session.sender is None:
            session.sender = Sender(
                session.id.hex(),
                functools.partial(self.emit, session),
                lambda: session.credentials,
                lambda: session.peer is not None,
                session,
            )
        sender: Sender = session.sender
        return sender

    def emit_to(self, peer: Sender | str, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event to one client, named by its `Sender` or the sender's id."""
        identifier = peer.id if isinstance(peer, Sender) else peer
        if not isinstance(identifier, str):
            raise TypeError(f"a client is named by an event's sender, or by the sender's id, not {peer!r}")
        sessions = (self.endpoint or self._reach()).machine.sessions
        try:
            session = sessions.get(bytes.fromhex(identifier))
        except ValueError:
            session = None
        if session is None:
            raise EmitError(f"cannot emit {name!r}: no client here has the id {shortened(identifier)}")
        self.emit(session, name, args, kwargs)

    def emit(
        self,
        session: Session,
        name: str,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        *,
        bounded: bool = True,
        now: bool = False,
    ) -> None:
        """Queue an event for one client, or send it ``now``.

        Raises EmitError if its session has ended, QueueFull, and as `emit`.
        """
        if (self.endpoint or self._reach()).machine.sessions.get(session.id) is not session:
            raise EmitError(f"cannot emit {name!r}: the session of {session.id.hex()[:8]} has ended")
        data = session.codec.encode(name, args, kwargs, {})
        if len(data) > session.outbox.max_frame - HEAD_BYTES:
            raise FrameTooLarge(
                f"event {shortened(name)} has {len(data)} bytes, over {session.outbox.max_frame} a frame"
            )
        if bounded and len(session.outbox.pending) >= self._settings.queue:
            raise QueueFull(f"{self._settings.queue} events wait for {session.id.hex()[:8]}; it does not keep up")
        session.outbox.pending.append(data)
        if now:
            endpoint = self.endpoint or self._reach()
            with endpoint.lock:
                endpoint.machine.writable[session] = None
                endpoint.flush()
        else:
            self.has_more(session)

    def has_more(self, session: Session) -> None:
        """Something waits to be sent to a client: soon, by whoever ticks or waits, or else by the keeper."""
        (self.endpoint or self._reach()).machine.writable[session] = None
        here = threading.get_ident()
        if self._turns.thread != here or self.keeping.waiter not in (0, here):
            self.keeping.waker.wake()
            self.keeping.call()
        elif not self._turns.lock.locked():  # Who is ticking sends before the tick is done.
            self.keeping.call()


SOON: Final = 0.002
"""Seconds after which the keeper sends what somebody left who neither ticks nor waits."""
AT_IT: Final = 0.05
"""Seconds that the keeper waits for somebody who is about to do the same."""
KEEP: Final = 0.3
"""Seconds after which the keeper looks after a link that nobody ticks."""
PATIENCE: Final = 15.0
"""Seconds of silence after which clients may take a server with a keeper for dead."""
FAREWELL: Final = 0.5
"""Seconds that a closing server waits for its clients to have read what was meant for them, and its last words."""
JOIN: Final = 1.0
"""Seconds that a closing server waits for its keeper."""
PUMPS: Final = 16
"""Pumps of the keeper at one time: it has to let go of the link soon."""


class ServerIO:
    """An open server's link. With ``threaded`` a small thread pumps it while nobody ticks; it dispatches nothing."""

    def __init__(self, endpoint: ServerPump, *, threaded: bool) -> None:
        self.endpoint = endpoint
        self.waker = Waker()
        self.pumped = time.monotonic()
        """When somebody last looked after the link, or is going to have done so."""
        self.waiter = 0
        """Ident of the thread that waited last."""
        self._users: Wakeable | None = None
        self._both: _CombinedWaker | None = None
        """The user's waker and our own."""
        self._stopping = threading.Event()
        self._call = _KeepaliveRequest()
        self._keeper: threading.Thread | None = None
        self._inherited = False
        if threaded:
            args = weakref.ref(self), self._stopping, self._call
            self._keeper = threading.Thread(target=_keep, args=args, name="remit-keeper", daemon=True)
            self._keeper.start()

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Send what waits, then return after ``timeout`` seconds or earlier if there may be something to tick."""
        endpoint, machine = self.endpoint, self.endpoint.machine
        self.waiter = threading.get_ident()
        with endpoint.lock:
            if machine.writable:
                endpoint.flush()
            if machine.ready or machine.writable:
                timeout = min(timeout, 0.0 if machine.ready else 0.01)
            self.pumped = time.monotonic() + timeout
            endpoint.wait(timeout, self.waker if waker is None else self._with(waker))
            self.waker.clear()

    def call(self) -> None:
        """Have the keeper send what waits for clients, if nobody else does so soon. From any thread."""
        if not self._call.made:
            self._call.made = True
            self._call.news.set()

    def close(self, linger: float) -> None:
        """Say farewell, and end within ``linger`` seconds. In a forked child give back the copies, and say nothing."""
        self._stopping.set()
        self._call.news.set()
        if not self._inherited:
            self.waker.wake()
        with self.endpoint.lock:
            if not self._inherited:
                self._say_farewell(time.monotonic() + min(linger, FAREWELL))
            self.endpoint.close(linger)
        if self._keeper is not None and self._keeper is not threading.current_thread():
            self._keeper.join(JOIN)
        if self._both is not None:
            self._both.close()
        self.waker.close()

    def after_fork(self) -> None:
        """In a forked child: its locks may be held by threads that are not here, and so is the keeper."""
        self.endpoint.lock = threading.Lock()
        self._stopping, self._call = threading.Event(), _KeepaliveRequest()
        self._keeper, self._inherited = None, True

    def keep(self) -> None:
        """Pump a link that nobody has ticked for a while. What arrives waits for the next tick."""
        endpoint = self.endpoint
        if time.monotonic() - self.pumped < KEEP or not endpoint.lock.acquire(blocking=False):
            return
        try:
            # What the link raises is for whoever ticks: the next tick meets it again.
            with contextlib.suppress(TransportError):
                for _ in itertools.repeat(None, 0 if self._stopping.is_set() else PUMPS):
                    if endpoint.pump():
                        break
        finally:
            endpoint.lock.release()

    def send_what_is_left(self) -> None:
        """Send what waits for clients, unless somebody else is at it."""
        endpoint = self.endpoint
        if not endpoint.machine.writable or not endpoint.lock.acquire(timeout=AT_IT):
            return
        try:
            with contextlib.suppress(TransportError):  # as in `keep`
                if not self._stopping.is_set():
                    endpoint.flush()
        finally:
            endpoint.lock.release()

    def _say_farewell(self, deadline: float) -> None:
        """Let what waits for clients leave, tell them, and wait for their answer: some backends lose what is unread."""
        endpoint, machine = self.endpoint, self.endpoint.machine
        endpoint.flush()
        while machine.has_unreceived and (left := deadline - time.monotonic()) > 0:
            endpoint.wait(min(left, 0.01))
            endpoint.pump()
        machine.queue_bye("closed")
        endpoint.flush()
        while machine.has_clients and (left := deadline - time.monotonic()) > 0:
            endpoint.wait(min(left, 0.01 if machine.writable else left))
            endpoint.pump()

    def _with(self, waker: Wakeable) -> Wakeable:
        """Return one descriptor that is readable when the user's waker or our own is."""
        # By the waker and not by its descriptor: once that is closed, another one may have its number.
        if self._both is None or self._users is not waker:
            if self._both is not None:
                self._both.close()
            self._users, self._both = waker, _CombinedWaker(waker, self.waker)
        return self._both


class _CombinedWaker:
    """Is readable when one of two wakers is: a selector's own descriptor; -1 once it is closed."""

    def __init__(self, *wakers: Wakeable) -> None:
        self._selector: selectors.BaseSelector | None = selectors.DefaultSelector()
        for waker in wakers:
            self._selector.register(waker.fileno(), selectors.EVENT_READ)

    def fileno(self) -> int:
        return -1 if self._selector is None else self._selector.fileno()  # type: ignore[attr-defined]

    def close(self) -> None:
        selector, self._selector = self._selector, None
        if selector is not None:
            selector.close()


class _KeepaliveRequest:
    """A word to the keeper."""

    def __init__(self) -> None:
        self.made = False
        self.news = threading.Event()


def _keep(reference: weakref.ref[ServerIO], stopping: threading.Event, call: _KeepaliveRequest) -> None:
    """Thread: look after the link now and then, and when called, until it is closed or forgotten."""
    while True:
        called = call.news.wait(KEEP)
        # Whoever ticks or waits after all has sent it until then, and many calls are one.
        if stopping.wait(SOON if called else 0.0):
            return
        call.news.clear()
        call.made = False
        keeping = reference()
        if keeping is None:
            return
        if called:
            keeping.send_what_is_left()
        keeping.keep()
        del keeping
