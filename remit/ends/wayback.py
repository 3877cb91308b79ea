"""Way back: from a server to each of its clients: what listeners, answers and publications send."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import Any

from remit.codec import Codec, shortened
from remit.endpoint import ServerEndpoint
from remit.ends.keeping import Keeping
from remit.errors import EmitError, FrameTooLarge, QueueFull
from remit.protocol.outbox import HEAD_BYTES, WINDOW_BYTES, Outbox
from remit.protocol.session import Session
from remit.sender import Sender
from remit.settings import Settings
from remit.transport import Capabilities

__all__ = ["Turns", "WayBack"]


class Turns:
    """Whose turn it is to tick a server: one thread's at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        """Held while somebody ticks."""
        self.thread = 0
        """Ident of the thread that ticks, or ticked last."""


class WayBack:
    """Gives events to the outboxes of a server's sessions. ``reach`` opens the server, or says why it is not open."""

    keeping: Keeping
    """What keeps the endpoint."""

    def __init__(self, reach: Callable[[], ServerEndpoint], turns: Turns) -> None:
        self.endpoint: ServerEndpoint | None = None
        """The server's, while it is open."""
        self._reach = reach
        self._turns = turns
        self._settings = Settings()
        self._max_frame = self._window_bytes = 0

    def limit(self, settings: Settings, capabilities: Capabilities) -> None:
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
