"""Runtime: an open client: its line, who drives it, and how it is drained and closed."""

from __future__ import annotations

import threading
import time
from typing import Any, Final, Protocol

from remit._io.client_io import IDLE_WAIT, PARK, Line
from remit._io.dispatcher import Dispatch
from remit._patterns.event_router import EventRouter
from remit._patterns.request_reply import FutureResult, InlineResult, Pose
from remit._protocol.outbox import BATCH_EVENTS
from remit.codec import Codec
from remit.errors import Undelivered, WouldDeadlock
from remit.location import Location
from remit.options import Options
from remit.transport import Transport

__all__ = ["CallerDriver", "Driver", "Runtime", "ThreadDriver"]


ACK_DELAY: Final = 0.005
"""Seconds that an acknowledgement waits for an event to leave with, where a thread sees that it leaves."""
BUSY: Final = 0.0002
"""Seconds after a send in which what is emitted belongs to one burst."""


class Driver(Protocol):
    """Sees to it that a line is served."""

    def wake(self) -> None:
        """Something waits in the gate that nobody is about to look at: have it leave soon."""
        ...

    def request(self, pose: Pose) -> Any:
        """Ask, wait for the answer and return it, or raise what became of it. Its deadline ends the wait."""
        ...

    def progress(self, seconds: float) -> None:
        """Wait until the line may have settled, ``seconds`` at the most."""
        ...


class CallerDriver:
    """Without a thread: the line is served while somebody calls."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._sent_at = 0.0

    def wake(self) -> None:
        """Send at once when idle, and in batches within a burst."""
        now = time.monotonic()
        if now - self._sent_at > BUSY or len(self._line.gate.pending) >= BATCH_EVENTS:
            self._sent_at = now
            self._line.pump()

    def request(self, pose: Pose) -> Any:
        """Serve until the answer is there."""
        answer = InlineResult()
        pose(answer)
        self._line.pump()  # It may still be gathering.
        while not answer.finished and not self._line.closing:
            self._line.drive(IDLE_WAIT)
        return answer.result()

    def progress(self, seconds: float) -> None:
        """Serve for a while."""
        self._line.pump()
        if not self._line.outbox.all_done:
            self._line.drive(min(seconds, IDLE_WAIT))


class ThreadDriver:
    """A daemon thread, started at first use. It holds the wheel, and lends it to callers who would wait anyway."""

    def __init__(self, line: Line) -> None:
        self._line = line
        self._gate = line.gate
        self._wheel = line.wheel
        self._thread: threading.Thread | None = None
        self._progress = threading.Condition()
        self._awaited = 0
        self._sent_at = 0.0

    @property
    def at_work(self) -> bool:
        """Whether the thread has been started."""
        return self._thread is not None

    def start(self) -> None:
        """Give the line to the thread from now on."""
        with self._progress:
            if self._thread is not None or self._line.closing:
                return
            self._gate.drive = None
            self._line.machine.session.ack_delay = ACK_DELAY
            self._thread = threading.Thread(target=self._run, name="remit-io", daemon=True)
            self._thread.start()

    def end(self, timeout: float) -> None:
        """Have all who wait return, and the thread end within ``timeout`` seconds. The line is closing."""
        self._wheel.end()
        with self._progress:
            self._progress.notify_all()
        self._line.inbound.stop(timeout)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(timeout)

    # -- a caller ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have the thread look up, or send here and now where that is sooner."""
        if self._thread is None:
            self.start()
        now = time.monotonic()
        pause, self._sent_at = now - self._sent_at, now
        if not (BUSY < pause < PARK and self._send_here()):
            self._gate.idle = False
            self._wheel.call()

    def _send_here(self) -> bool:
        """Send in the caller's own thread, which saves a change of threads; False if somebody else serves.

        Worth it at a steady pace: then the thread has let go of the line, as it does while callers serve.
        """
        if not self._wheel.borrow():
            return False
        try:
            self._gate.idle = False
            self._send()
            drained = self._pump_and_tell()
        finally:
            self._gate.idle = True
            self._wheel.give_back()
        if self._gate.pending or not drained:
            self._wheel.call()
        return True

    def request(self, pose: Pose) -> Any:
        """Serve until the answer is there, if no other caller does: it comes without a change of threads.

        Raises WouldDeadlock in a future's callback.
        """
        if self._line.in_callback:
            raise _would_deadlock()
        if self._thread is None:
            self.start()
        if not self._wheel.borrow():
            waiter = FutureResult()
            pose(waiter)
            return waiter.future.result()
        answer = InlineResult()
        try:
            self._gate.idle = False
            pose(answer)
            self._send()
            while not answer.finished and not self._line.closing:
                self._rest()
                self._gate.idle = False
                self._pump_and_tell()
        finally:
            self._gate.idle = True
            self._wheel.give_back()
            if len(self._line.asking) > 1 or self._gate.pending:
                self._wheel.call()
        return answer.result()

    def progress(self, seconds: float) -> None:
        """Wait. The thread is not woken: it works already if anything can be done, and says when all is.

        Raises WouldDeadlock in a future's callback.
        """
        if self._line.in_callback:
            raise _would_deadlock()
        self.start()
        with self._progress:
            self._awaited += 1
            if not self._line.settled:
                self._progress.wait(min(seconds, IDLE_WAIT))
            self._awaited -= 1

    # -- whoever holds the wheel -------------------------------------------------------------------------------

    def _run(self) -> None:
        """The thread: serve the line while nobody else does."""
        while self._wheel.take():
            try:
                self._serve()
            finally:
                self._wheel.release()

    def _serve(self) -> None:
        """Pump; if there is nothing more to do, sleep until something is."""
        self._gate.idle = False
        if self._pump_and_tell():
            self._rest()

    def _send(self) -> None:
        """Send what may leave. What has come can wait until then."""
        with self._line.endpoint.lock:
            self._line.endpoint.flush()

    def _rest(self) -> None:
        """Sleep until there is something to do, unless there is something to send."""
        line, gate = self._line, self._gate
        if line.sendable:
            return
        gate.idle = True
        # Looked at once more: what was put there in between was told to nobody.
        if not (gate.pending and line.sendable):
            line.sleep(IDLE_WAIT)

    def _pump_and_tell(self) -> bool:
        """Pump; let those know who wait for events, or for confirmations. True if nothing is left to receive."""
        line = self._line
        drained = line.pump()
        if len(line.inbound):
            line.inbound.announce()
        if self._awaited and line.settled:
            with self._progress:
                self._progress.notify_all()
        return drained


def _would_deadlock() -> WouldDeadlock:
    return WouldDeadlock(
        "a future's callback runs on the thread that serves the connection: wait in another thread, or submit()"
    )


JOIN: Final = 2.0
"""Seconds that a closing client waits for its own threads beyond the linger."""

_ABANDONED: list[Runtime] = []
"""What a forked child inherited: kept for ever, since to collect it could touch what the parent owns."""


class Runtime:
    """An open client. `gate` is what ``emit`` sees of it."""

    def __init__(
        self,
        transport: Transport,
        location: Location,
        settings: Options,
        *,
        codec: Codec | None,
        threaded: bool,
        router: EventRouter,
        dispatch: Dispatch,
    ) -> None:
        line = Line(transport, location, settings, codec=codec, router=router, dispatch=dispatch, wake=self.wake)
        self._line = line
        self._by_thread = ThreadDriver(line)
        self._driver: Driver = self._by_thread if threaded else CallerDriver(line)
        if not threaded:
            line.gate.drive = line.drive
        self.gate = line.gate
        self.asking = line.asking

    @property
    def connected(self) -> bool:
        """Whether a server has welcomed this client on the present connection."""
        return self._line.connected

    @property
    def silence(self) -> float:
        """Seconds since the server was last heard."""
        return time.monotonic() - self._line.machine.session.last_received_at

    def stats(self) -> dict[str, int]:
        """Return counters of the queue, the window and the connection."""
        return self._line.stats()

    # -- driving -----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Have what waits in the gate looked at soon. Raises SessionRefused."""
        self._line.check()
        if self.gate.idle:
            self._driver.wake()

    def start(self) -> None:
        """Give the link to a thread from now on."""
        self._driver = self._by_thread
        self._by_thread.start()

    def tick(self, timeout: float) -> int:
        """Pump once, after waiting up to ``timeout`` seconds if nothing is there; dispatch; return how many."""
        if self._by_thread.at_work:
            return 0
        line = self._line
        line.pump()
        if not len(line.inbound) and timeout > 0:
            line.drive(timeout)
        count = line.inbound.hand_over()
        if count:
            line.pump()
        return count

    def request(self, pose: Pose) -> Any:
        """Ask, wait for the answer and return it, or raise what became of it. Its deadline ends the wait."""
        return self._driver.request(pose)

    def answers_within(self, seconds: float) -> None:
        """Let an acknowledgement wait so long for an event to leave with."""
        self._line.machine.session.ack_delay = seconds

    def beat(self, seconds: float) -> None:
        """Ask after this many seconds of silence whether the server is there."""
        self._line.machine.set_heartbeat(seconds)  # Two numbers: no lock, which whoever waits for the link holds.
        self._line.wheel.call()

    # -- ending ------------------------------------------------------------------------------------------------

    def drain(self, timeout: float, *, quiet: bool = False) -> bool:
        """Wait until nothing is under way; False after ``timeout`` seconds, or if something can never leave.

        Raises SessionRefused unless quiet.
        """
        line, deadline = self._line, time.monotonic() + timeout
        while not line.outbox.all_done:
            if line.machine.refusal is not None:
                if not quiet:
                    line.check()
                return False
            left = deadline - time.monotonic()
            if left <= 0 or line.closing or (quiet and self._by_thread.at_work and line.in_callback):
                return False
            self._driver.progress(left)
        return not line.outbox.oversized

    def close(self, linger: float) -> Undelivered | None:
        """End the threads and the link; return what was not confirmed, as an error to raise."""
        self._line.closing = self.gate.closed = True
        self.gate.opened()
        self._by_thread.end(JOIN)
        self._line.hang_up(linger)
        return self._line.undelivered()

    def abandon(self) -> None:
        """In a forked child: keep what was inherited, and never touch it."""
        _ABANDONED.append(self)
