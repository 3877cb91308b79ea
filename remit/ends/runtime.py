"""Runtime: what a client holds while it is open: its link, its queue, and the threads that serve them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any, Final

from remit.codec import Codec, find_codec
from remit.endpoint import ClientEndpoint
from remit.ends.inbound import Dispatch, Inbound
from remit.ends.outgate import LARGE, Outgate
from remit.ends.wheel import PARK, Wheel
from remit.errors import FrameTooLarge, SessionRefused, Undelivered
from remit.event import Event
from remit.keyed import count_with
from remit.location import Location
from remit.patterns.asking import PROGRESS, REPLY, REQUEST, Asking
from remit.protocol.connector import Connector, State
from remit.protocol.outbox import BATCH_EVENTS, HEAD_BYTES, WINDOW_BYTES, Outbox
from remit.settings import Settings
from remit.transport import Link, Transport

__all__ = ["Runtime"]

IDLE_WAIT: Final = 60.0
"""Seconds that an idle thread sleeps at the most; whatever happens wakes it."""
JOIN: Final = 2.0
"""Seconds that a closing client waits for its own threads beyond the linger."""
ACK_DELAY: Final = 0.005
"""Seconds that an acknowledgement waits for an event to leave with, where a thread sees that it leaves."""
BUSY: Final = 0.0002
"""Seconds after a send in which an unthreaded client gathers events into one frame."""

_ABANDONED: list[Runtime] = []
"""What a forked child inherited: kept for ever, since to collect it could touch what the parent owns."""


class Runtime:
    """An open client. `pending`, `idle`, `small` and `capacity` are for the path of ``emit`` alone."""

    def __init__(
        self,
        transport: Transport,
        location: Location,
        settings: Settings,
        *,
        codec: Codec | None,
        threaded: bool,
        dispatch: Dispatch,
    ) -> None:
        self._codec = codec or find_codec(settings.codec)
        self._settings = settings

        def connect() -> Link:
            return transport.connect(location)

        link = connect()
        capabilities = link.capabilities
        self._max_event = capabilities.max_frame - HEAD_BYTES
        self._outbox = Outbox(
            self._codec,
            max_frame=capabilities.max_frame,
            window_events=settings.window,
            window_bytes=min(WINDOW_BYTES, capabilities.window or WINDOW_BYTES),
            sequenced=settings.delivery != "at_most_once",
        )
        self._machine = Connector(
            self._codec, self._outbox, max_frame=capabilities.max_frame, heartbeat=settings.heartbeat
        )
        count_with(transport, self._machine)
        self._endpoint = ClientEndpoint(self._machine, link, connect)
        self._wheel = Wheel()
        self.asking = Asking(self._codec, self._outbox, self._post, self._cancel)
        self._inbound = Inbound(dispatch, self.wake_thread)
        self.urgent = self._inbound.urgent
        self.urgent |= {REPLY: self.asking.heard, PROGRESS: self.asking.progressed}
        self._progress = threading.Condition()
        self._stopping = False
        self._thread: threading.Thread | None = None
        self._awaited = 0
        self._wanted = threaded
        self._sent_at = 0.0
        self._gate = Outgate(self._outbox, settings, None if threaded else self._drive)
        self.encode = self._codec.encode
        self.pending = self._outbox.pending
        self.small = min(LARGE - 1, self._max_event)
        self.capacity = settings.queue
        self.idle = True
        """Nobody is about to look at `pending`: whoever appends must `wake`. Only who holds the wheel makes it True."""

    # -- for emit ----------------------------------------------------------------------------------------------

    def admit(self, name: str, size: int) -> bool:
        """Make room for an event as ``when_full`` says; False: it is dropped. Raises FrameTooLarge, EmitError."""
        largest = min(self._max_event, self._outbox.max_frame - HEAD_BYTES)
        if size > largest:
            raise FrameTooLarge(f"event {name!r} has {size} bytes, over {largest} for this location; send it in parts")
        return self._gate.admit(name, size)

    def wake(self) -> None:
        """Have `pending` looked at soon: by the thread, or here and now where that is sooner."""
        if self._machine.refusal is not None:
            raise SessionRefused(self._machine.refusal.reason, self._machine.refusal.detail)
        if not self.idle:
            return
        if self._thread is None and not self._wanted:
            self._push()
            return
        self.start()
        now = time.monotonic()
        pause, self._sent_at = now - self._sent_at, now
        if not (BUSY < pause < PARK and self._serve_once()):
            self.idle = False
            self.wake_thread()

    def _serve_once(self) -> bool:
        """Send in the caller's own thread, which saves a change of threads; False if somebody else serves.

        Worth it at a steady pace: then the thread has let go of the link, as it does while callers serve.
        """
        if not self._wheel.borrow():
            return False
        try:
            self.idle = False
            with self._endpoint.lock:
                self._endpoint.flush()  # What has come can wait until this has left.
            drained = self._pump_and_tell()
        finally:
            self.idle = True
            self._wheel.give_back()
        if self.pending or not drained:
            self._wheel.call()
        return True

    def wake_thread(self) -> None:
        """Have whoever serves the link look up."""
        self._wheel.call()

    def _post(self, name: str, data: bytes) -> bool:
        """Queue an encoded event; False: it was dropped."""
        if not self.admit(name, len(data)):
            return False
        self.pending.append(data)
        if self.idle:
            self.wake()
        return True

    def beat(self, seconds: float) -> None:
        """Ask after this many seconds of silence whether the server is there."""
        self._machine.beat(seconds)  # Two numbers: no lock, which whoever waits for the link holds.
        self.wake_thread()

    def answers_within(self, seconds: float) -> None:
        """Let an acknowledgement wait so long for an event to leave with."""
        self._machine.session.ack_delay = seconds

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard."""
        return time.monotonic() - self._machine.session.heard

    def _cancel(self, request: int) -> None:
        self._machine.session.given_up.append(request)
        if not self._stopping:
            self.wake_thread()

    def _push(self) -> None:
        """Without a thread: send at once when idle, and in batches within a burst."""
        now = time.monotonic()
        if now - self._sent_at > BUSY or len(self.pending) >= BATCH_EVENTS:
            self._sent_at = now
            self._pump()

    def _drive(self, seconds: float) -> None:
        """Without a thread: wait for something to come, at the most ``seconds``, and take it in."""
        with self._endpoint.lock:
            self._endpoint.wait(self._until_due(seconds), self._wheel.waker)
            self._wheel.waker.clear()
        self._pump()

    # -- driving -----------------------------------------------------------------------------------------------

    def start(self) -> None:
        """Give the link to a thread from now on."""
        with self._progress:
            if self._thread is not None or self._stopping:
                return
            self._wanted = True
            self._machine.session.ack_delay = ACK_DELAY
            self._gate = Outgate(self._outbox, self._settings, None)
            self._thread = threading.Thread(target=self._run, name="remit-io", daemon=True)
            self._thread.start()

    def tick(self, timeout: float) -> int:
        """Pump once, after waiting up to ``timeout`` seconds if nothing is there; dispatch; return how many."""
        if self._thread is not None:
            return 0
        self._pump()
        if not len(self._inbound) and timeout > 0:
            self._drive(timeout)
        count = self._inbound.hand_over()
        if count:
            self._pump()
        return count

    def request(self, ask: Callable[[], Future[Any]]) -> Any:
        """Ask, wait for the answer and return it, or raise what became of it. Its deadline ends the wait.

        The calling thread serves the link meanwhile, if no other does: an answer comes without a change of threads.
        """
        if self._thread is None and not self._wanted:
            future = ask()
            self._pump()  # It may still be gathering.
            while not future.done():
                self._drive(IDLE_WAIT)
            return future.result()
        self.start()
        if not self._wheel.borrow():
            return ask().result()
        try:
            self.idle = False
            future = ask()
            while not future.done() and not self._stopping:
                self._serve(future)
        finally:
            self.idle = True
            self._wheel.give_back()
            if len(self.asking) > 1 or self.pending:
                self._wheel.call()
        return future.result()

    def _pump(self) -> bool:
        with self._endpoint.lock:
            drained = self._endpoint.pump()
        if self._gate.waiting:
            self._gate.opened()
        self._inbound.take_in(self._machine, self.asking, time.monotonic())
        return drained

    def _until_due(self, seconds: float) -> float:
        """Return the seconds until a request is late, ``seconds`` at the most."""
        return max(0.0, min(seconds, self.asking.due - time.monotonic())) if len(self.asking) else seconds

    def _run(self) -> None:
        """The thread: serve the link while nobody else does."""
        while self._wheel.take():
            try:
                self._serve()
            finally:
                self._wheel.release()

    def _serve(self, awaited: Future[Any] | None = None) -> None:
        """Pump; if there is nothing more to do, and ``awaited`` is not done, sleep until something is.

        Whoever does so holds the wheel.
        """
        self.idle = False
        drained = self._pump_and_tell()
        if not drained or (self._machine.sendable() and not self._stuck) or (awaited is not None and awaited.done()):
            return
        self.idle = True
        if not (self.pending and self._machine.sendable() and not self._stuck):
            with self._endpoint.lock:
                if not self._stopping:
                    self._endpoint.wait(self._until_due(IDLE_WAIT), self._wheel.waker)
                self._wheel.waker.clear()

    def _pump_and_tell(self) -> bool:
        """Pump; let those know who wait for events, or for confirmations. True if nothing is left to receive."""
        drained = self._pump()
        if len(self._inbound):
            self._inbound.announce()
        if self._awaited and self._settled:
            with self._progress:
                self._progress.notify_all()
        return drained

    @property
    def _stuck(self) -> bool:
        """Whether the transport refused the frame that is next: it says itself when to try again."""
        return self._machine.session.stuck

    # -- ending ------------------------------------------------------------------------------------------------

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self._machine.state is State.UP

    def drain(self, timeout: float, *, quiet: bool = False) -> bool:
        """Wait until nothing is under way; False after ``timeout`` seconds. Raises SessionRefused unless quiet."""
        deadline = time.monotonic() + timeout
        while not self._outbox.empty:
            if self._machine.refusal is not None:
                if quiet:
                    return False
                raise SessionRefused(self._machine.refusal.reason, self._machine.refusal.detail)
            left = deadline - time.monotonic()
            if left <= 0 or self._stopping:
                return False
            self._await_progress(left)
        return True

    def _await_progress(self, seconds: float) -> None:
        if self._thread is None and not self._wanted:
            self._pump()
            if not self._outbox.empty:
                self._drive(min(seconds, IDLE_WAIT))
            return
        self.start()
        with self._progress:
            self._awaited += 1
            # The thread is not woken: it works already if anything can be done, and says when all is.
            if not self._settled:
                self._progress.wait(min(seconds, IDLE_WAIT))
            self._awaited -= 1

    @property
    def _settled(self) -> bool:
        """Whether there is nothing to wait for: all is confirmed, or nothing will be."""
        return self._outbox.empty or self._machine.refusal is not None or self._stopping

    def close(self, linger: float) -> Undelivered | None:
        """End the threads and the link; return what was not confirmed, as an error to raise."""
        self._stopping = True
        self._wheel.end()
        with self._progress:
            self._progress.notify_all()
        self._inbound.stop(JOIN)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(JOIN)
        with self._endpoint.lock:
            self._machine.session.ack_delay = 0.0
            self._machine.bye()
            self._endpoint.flush()
            self._endpoint.close(linger)
        self._wheel.close()
        self.asking.close()
        return self._undelivered()

    def abandon(self) -> None:
        """In a forked child: keep what was inherited, and never touch it."""
        _ABANDONED.append(self)

    def _undelivered(self) -> Undelivered | None:
        fates: dict[str, list[Event]] = {"received": [], "unknown": [], "never_sent": []}
        for fate, data in self._outbox.unfinished():
            wire = self._codec.decode(self._codec.join(b"", [data]))[0]
            if wire.name != REQUEST:  # Whoever asked is told by the answer's future.
                fates[fate].append(wire.event())
        if not any(fates.values()):
            return None
        refusal = self._machine.refusal
        return Undelivered(why=refusal.detail if refusal else "", **fates)

    def stats(self) -> dict[str, int]:
        """Return counters of the queue, the window and the connection."""
        session = self._machine.session
        return {
            "queued": len(self.pending),
            "requests": len(self.asking),
            "unconfirmed": self._outbox.unconfirmed,
            "emitted": self._outbox.last + len(self.pending),
            "connections": session.generation,
            "duplicates": session.inbox.duplicates,
            "dropped": self._gate.dropped.total(),
            "rejected": self._machine.rejected.total(),
        }
