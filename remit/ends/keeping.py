"""Keeping: what a server holds while it is open: its link, what wakes it, and a thread that keeps it alive unticked."""

from __future__ import annotations

import contextlib
import itertools
import selectors
import threading
import time
import weakref
from typing import Final

from remit.endpoint import ServerEndpoint
from remit.errors import TransportError
from remit.transport import Wakeable, Waker

__all__ = ["PATIENCE", "Keeping"]

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


class Keeping:
    """An open server's link. With ``threaded`` a small thread pumps it while nobody ticks; it dispatches nothing."""

    def __init__(self, endpoint: ServerEndpoint, *, threaded: bool) -> None:
        self.endpoint = endpoint
        self.waker = Waker()
        self.pumped = time.monotonic()
        """When somebody last looked after the link, or is going to have done so."""
        self.waiter = 0
        """Ident of the thread that waited last."""
        self._users: Wakeable | None = None
        self._both: _Both | None = None
        """The user's waker and our own."""
        self._stopping = threading.Event()
        self._call = _Call()
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
        self._stopping, self._call = threading.Event(), _Call()
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
        while machine.leaving and (left := deadline - time.monotonic()) > 0:
            endpoint.wait(min(left, 0.01))
            endpoint.pump()
        machine.bye("closed")
        endpoint.flush()
        while machine.attended and (left := deadline - time.monotonic()) > 0:
            endpoint.wait(min(left, 0.01 if machine.writable else left))
            endpoint.pump()

    def _with(self, waker: Wakeable) -> Wakeable:
        """Return one descriptor that is readable when the user's waker or our own is."""
        # By the waker and not by its descriptor: once that is closed, another one may have its number.
        if self._both is None or self._users is not waker:
            if self._both is not None:
                self._both.close()
            self._users, self._both = waker, _Both(waker, self.waker)
        return self._both


class _Both:
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


class _Call:
    """A word to the keeper."""

    def __init__(self) -> None:
        self.made = False
        self.news = threading.Event()


def _keep(reference: weakref.ref[Keeping], stopping: threading.Event, call: _Call) -> None:
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
