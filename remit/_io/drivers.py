"""Client I/O drivers. The link is pumped by the calling thread or by a background thread, which lends it to callers."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from queue import Empty, SimpleQueue
from threading import get_ident
from typing import TYPE_CHECKING, Final

from remit._io.send_queue import WaitingThreads
from remit._protocol.outbox import BATCH_EVENTS
from remit.errors import WouldDeadlock
from remit.transport import DaemonThread, Waker, next_item

if TYPE_CHECKING:
    from remit._io.client_io import ClientIO
    from remit._patterns.request_reply import InlineResult

logger = logging.getLogger("remit")

IDLE_WAIT_S: Final = 60.0
"""Upper bound of one wait on an idle link; frames, deadlines and the waker end it."""
ACK_DELAY_S: Final = 0.005
"""An acknowledgement waits this long for an event to share its frame, if an I/O thread runs to send it in time."""
BURST_PAUSE_S: Final = 0.0002
"""Events emitted in shorter intervals form a burst: they are sent in batches."""
PARK_S: Final = 0.002
"""The I/O thread leaves the link to callers for this long after each call: the next request may follow."""
LONG_LOAN_S: Final = 0.02
"""If a caller holds the link for longer, the I/O thread stops polling for it and sleeps until it is notified."""
BORROW_S: Final = 0.1
"""Longest wait of a caller for the I/O thread to leave the link, which a callback of a future may delay."""
CALLER_POLL_S: Final = 0.25
"""Upper bound of one wait of a caller without an I/O thread: another thread may have received its reply."""


class LinkLock:
    """A lock on the link with two kinds of holders: the I/O thread, and callers that borrow the link from it.

    A caller that waits for a reply pumps the link itself. Otherwise the I/O thread would receive the reply and wake the
    caller: two changes of threads, 97 us instead of 70 us for an event at a steady pace.
    """

    def __init__(self) -> None:
        self.waker = Waker()
        """Ends the wait of the current holder."""
        # A borrower enters itself in _borrower, then takes _held. Both know their owner. So a signal handler or
        # finalizer in the thread that holds the link can be refused, and `recover` releases no lock of another call.
        self._held = threading.RLock()
        self._borrower: dict[int, int] = {}
        """Ident of the caller that has the link, at key 0: `setdefault` admits one of several callers."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        """Ends the wait of the parked I/O thread. Its put() is safe in signal handlers and finalizers."""
        self._parked = self._asleep = self._interrupted = self._stopped = False
        self._lent_at = self._parked_until = 0.0

    def interrupt(self) -> None:
        """End the wait of the current holder. If there is none, have the I/O thread take the link. From any thread."""
        self.waker.wake()
        if self._parked and not self._borrower:
            self._unpark()

    @property
    def held_here(self) -> bool:
        """Whether the calling thread holds the link, or is about to."""
        return self._borrower.get(0) == get_ident() or self._held._is_owned()  # type: ignore[attr-defined]

    # -- the I/O thread ----------------------------------------------------------------------------------------

    def await_need(self) -> bool:
        """Wait as long as callers use the link. Return False after `stop`."""
        if self._borrower or time.monotonic() < self._parked_until:
            self._park()
        return not self._stopped

    def acquire(self) -> bool:
        """Wait until the I/O thread holds the link. Return False after `stop`."""
        while self.await_need():
            if self._held.acquire(timeout=IDLE_WAIT_S):
                # A caller may have borrowed the link between the check above and the lock: the caller goes first.
                if not self._borrower:
                    return True
                self._held.release()
        return False

    def release(self) -> None:
        """Release the link, so that a caller may borrow it."""
        self._held.release()

    def _park(self) -> None:
        """Wait until no caller has used the link for `PARK_S`, or until `interrupt`."""
        self._parked = True
        while not self._stopped and (
            self._borrower or (not self._interrupted and time.monotonic() < self._parked_until)
        ):
            # give_back() clears _borrower, then reads _asleep; this thread sets _asleep, then reads _borrower. So
            # either this wait is short, or give_back() sees a sleeping thread and wakes it.
            self._asleep = bool(self._borrower) and self.is_lent_for_long()
            with contextlib.suppress(Empty):
                next_item(self._bell, IDLE_WAIT_S if self._asleep and self._borrower else PARK_S)
        self._parked = self._interrupted = self._asleep = False

    def is_lent_for_long(self) -> bool:
        """Return whether a caller has held the link for more than `LONG_LOAN_S`."""
        return time.monotonic() - self._lent_at > LONG_LOAN_S

    def _unpark(self) -> None:
        self._interrupted = True
        self._bell.put(None)

    # -- a caller ----------------------------------------------------------------------------------------------

    def try_borrow(self) -> bool:
        """Take the link from the I/O thread. Return False if another call has it. `give_back` or `recover` follows."""
        me = get_ident()
        if self._borrower or self._held._is_owned() or self._borrower.setdefault(0, me) != me:  # type: ignore[attr-defined]
            return False
        self._lent_at = time.monotonic()
        # A parked I/O thread does not hold the link: to wake it would cost a system call and a change of threads.
        if not self._parked:
            self.waker.wake()
        if self._held.acquire(timeout=BORROW_S):
            return True
        self._borrower.clear()
        return False

    def give_back(self) -> None:
        """Return the link. The I/O thread stays parked for `PARK_S`, unless `interrupt` is called."""
        self._parked_until = time.monotonic() + PARK_S
        self._borrower.clear()
        asleep = self._asleep
        self._held.release()
        if asleep:
            self._bell.put(None)

    def recover(self) -> None:
        """Return the link after an exception, if the calling thread has it, and have the I/O thread take it.

        The caller must be the outermost call of this thread that borrows the link.
        """
        if self._borrower.get(0) == get_ident():
            self._borrower.clear()
        while self._held._is_owned():  # type: ignore[attr-defined]
            self._held.release()
        self._parked_until = 0.0
        self.waker.wake()
        self._unpark()

    # -- the end -----------------------------------------------------------------------------------------------

    def stop(self) -> None:
        """End the waits of the I/O thread and of a caller that holds the link."""
        self._stopped = True
        self.waker.wake()
        self._unpark()


class CallerDriver:
    """Pumps the link only in calls of the user: emit, request, flush and tick. For ``threaded=False``."""

    running = False
    """No thread pumps the link."""

    def __init__(self, io: ClientIO) -> None:
        self._io = io
        self._sent_at = 0.0

    @property
    def holds_link(self) -> bool:
        """Whether the calling thread pumps or waits already: a callback, a signal handler or a finalizer runs."""
        return self._io.pumps_here

    def wake(self) -> None:
        """Send now after a pause; in a burst, only when a full batch is queued. Raises SessionRefused."""
        self._io.check_refused()
        now = time.monotonic()
        if now - self._sent_at > BURST_PAUSE_S or len(self._io.send_queue.pending) >= BATCH_EVENTS:
            self._sent_at = now
            self._io.pump()

    def stop(self, timeout: float) -> None:
        """End the wait of another thread. `ClientIO.closing` must be set."""
        self._io.link_lock.stop()

    def try_acquire(self) -> bool:
        """Return True: the calling thread always pumps the link."""
        return True

    def release(self) -> None:
        """Do nothing: there is no other holder."""

    def recover(self) -> None:
        """Do nothing: the pump has released its lock."""

    def run_until(self, result: InlineResult) -> None:
        """Pump until ``result`` is done or the client closes. The deadline of the request bounds the wait."""
        if not result.finished:
            self._io.pump()  # In a burst `wake` has left the request in the queue.
        while not result.finished and not self._io.closing:
            self._io.wait_and_pump(CALLER_POLL_S)

    def progress(self, seconds: float) -> None:
        """Pump; if events are unconfirmed, wait once for at most ``seconds`` and pump again. Raises WouldDeadlock."""
        check_may_wait(self)
        self._io.pump()
        if not self._io.outbox.all_done:
            self._io.wait_and_pump(min(seconds, IDLE_WAIT_S))


class ThreadDriver:
    """Pumps the link in a daemon thread, started at first use, and in callers that borrow the link."""

    def __init__(self, io: ClientIO) -> None:
        self._io = io
        self._queue = io.send_queue
        self._lock = io.link_lock
        self._thread = DaemonThread(self._run, "remit-io", self._lock.await_need)
        self._settled = WaitingThreads()
        """Threads that wait for confirmations."""
        self._emitted_at = 0.0

    @property
    def running(self) -> bool:
        """Whether the thread has been started."""
        return self._thread.started

    @property
    def holds_link(self) -> bool:
        """Whether the calling thread has the link: a callback of a future, a signal handler or a finalizer runs."""
        return self._lock.held_here or self._io.pumps_here  # tick() pumps until the thread is started.

    def start(self) -> None:
        """Start the thread, unless it runs."""
        if self._thread.started or self._io.closing:
            return
        self._queue.serve = None
        self._io.machine.session.ack_delay = ACK_DELAY_S
        self._thread.start()

    def stop(self, timeout: float) -> None:
        """Stop the thread and end all waits within ``timeout`` seconds. `ClientIO.closing` must be set."""
        self._lock.stop()
        self._settled.notify()
        self._thread.join(timeout)

    # -- a caller ----------------------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send queued events soon: in the I/O thread, or in this thread if that is faster. Raises SessionRefused."""
        if self._io.closing:
            return  # close() reports what is not delivered.
        self._io.check_refused()
        if not self._thread.started:
            self.start()
        now = time.monotonic()
        pause, self._emitted_at = now - self._emitted_at, now
        # At a steady pace the I/O thread is parked, so this thread sends without a change of threads (70 us to the
        # listener instead of 97 us). In a burst, and after a long pause, the I/O thread sends larger batches.
        if not (BURST_PAUSE_S < pause < PARK_S and self._send_inline()):
            self._queue.idle = False
            self._lock.interrupt()

    def _send_inline(self) -> bool:
        """Send in this thread. Return False if another call has the link."""
        if self._lock.held_here:
            return False
        try:
            if not self._lock.try_borrow():
                return False
            self._queue.idle = False
            self._io.flush()
            drained = self._pump_and_notify()
            self._queue.idle = True
            self._lock.give_back()
        except BaseException:
            self.recover()
            raise
        if self._queue.pending or not drained:
            self._lock.interrupt()
        return True

    def try_acquire(self) -> bool:
        """Borrow the link for `run_until`. Return False if another call has it."""
        acquired = self._lock.try_borrow()
        if not self._thread.started:
            self.start()  # After borrowing, so that the thread waits.
        if acquired:
            self._queue.idle = False
        return acquired

    def run_until(self, result: InlineResult) -> None:
        """Pump until ``result`` is done or the client closes. The deadline of the request bounds the wait."""
        self._io.flush()  # Before receiving: the server can start while this thread reads.
        while not result.finished and not self._io.closing:
            self._rest()
            self._queue.idle = False
            self._pump_and_notify()

    def release(self) -> None:
        """Return the link after `try_acquire`."""
        self._queue.idle = True
        self._lock.give_back()
        # One open request of another thread may be delayed by PARK_S, until the I/O thread takes the link by itself.
        if self._queue.pending or len(self._io.requests.open) > 1:
            self._lock.interrupt()

    def recover(self) -> None:
        """Return the link after an exception in any method, and have the I/O thread send what waits."""
        self._queue.idle = True
        self._lock.recover()

    def progress(self, seconds: float) -> None:
        """Wait until all events are confirmed or never will be, for at most ``seconds``.

        Does not wake the I/O thread: it pumps whenever it can. Raises WouldDeadlock as `check_may_wait`.
        """
        check_may_wait(self)
        self.start()
        self._settled.wait(seconds, unless=lambda: self._io.settled)

    # -- the holder of the link --------------------------------------------------------------------------------

    def _run(self) -> None:
        """Pump whenever no caller has the link."""
        while self._lock.acquire():
            try:
                self._queue.idle = False
                if self._pump_and_notify():
                    self._rest()
            except BaseException as error:
                # Also SystemExit of a codec. The pump has recovered: it opens another connection.
                logger.exception("the I/O thread of a client goes on after an unexpected error")
                self._io.link_pump.fail(error)
            finally:
                self._lock.release()

    def _rest(self) -> None:
        """Wait until frames arrive, a deadline passes or `interrupt` is called, unless an event can be sent now."""
        io, queue = self._io, self._queue
        if io.sendable:
            return
        queue.idle = True
        # Read once more: an event that was appended before the line above has woken no thread.
        if not (queue.pending and io.sendable):
            io.wait(IDLE_WAIT_S)

    def _pump_and_notify(self) -> bool:
        """Pump; wake the dispatch thread and waiting flushes. Return True if nothing is left to receive."""
        io = self._io
        drained = io.pump()
        if len(io.dispatcher):
            io.dispatcher.wake_thread()
        if self._settled and io.settled:
            self._settled.notify()
        return drained


def check_may_wait(driver: CallerDriver | ThreadDriver) -> None:
    """Raise WouldDeadlock in a thread that has the link already: it would wait for itself."""
    if driver.holds_link:
        raise WouldDeadlock(
            "this call runs within another call of this client in the same thread, or in a callback of a future on its "
            "I/O thread: wait in another thread, or use submit()"
        )
