"""The contract between Remit and a transport, and the building blocks for implementing one.

A transport moves whole frames between one server and many clients, and does nothing else. Acknowledgement, resending,
deduplication, flow control and liveness are implemented once, in ``remit._protocol``, above every transport. A
transport need not be reliable. It must report correctly what it did and what it may have lost.

The rules, each covered by checks of `remit.testing`:

1.  A frame arrives whole or not at all.
2.  Frames of one peer and direction arrive in order. A frame may be lost only together with a `Down`, a `Gap` or a
    declared ``lossy`` capability.
3.  The transport creates no duplicates.
4.  `Sent.ACCEPTED` means that the link took the frame, not that it was delivered. `Sent.FULL` means not taken: retry
    after `wait`. `Sent.GONE` means not taken: there is no such peer.
5.  `Down` is the last arrival of a peer token, and no other connection gets the same token. At the client's end the
    only token is `SERVER`, which may come `Up` again after each `Down`.
6.  `send` and `receive` never block. `wait` returns by its timeout, `close` by its linger.
7.  A link is used by one thread at a time, whose ident is in ``owner``. Any other thread gets `WrongThreadError`, any
    other process `ForkedLinkError`. `close` in a forked child affects nothing that the parent holds.
8.  `wait` is level-triggered: it returns immediately while a frame waits to be received.
9.  A frame over ``capabilities.max_frame`` raises `FrameTooLarge` before any of it is sent.
10. A second server on one location raises `LocationInUse`.
11. No user code runs on a transport's thread.
12. `close` may be called twice.
13. `Down` has a reason. ``why`` is empty while the link is connected, and any thread may read it.
"""

from __future__ import annotations

import _thread
import contextlib
import enum
import errno
import fcntl
import functools
import os
import select
import threading
import time
import weakref
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from itertools import chain, count, repeat, starmap
from queue import Empty, SimpleQueue
from types import MethodType
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Protocol, TypeAlias, TypeVar

from remit.errors import (
    BadLocation,
    ForkedLinkError,
    FrameTooLarge,
    LinkClosed,
    LocationInUse,
    TransportError,
    WrongThreadError,
)
from remit.event import Credentials
from remit.hookspecs import hookimpl
from remit.runtime_dirs import remove_dead_socket

if TYPE_CHECKING:
    from remit.location import Location

__all__ = [
    "SERVER",
    "Arrival",
    "Capabilities",
    "Credentials",
    "DaemonThread",
    "Down",
    "FileLock",
    "Frame",
    "Gap",
    "Link",
    "OwnedLink",
    "Peer",
    "Poller",
    "Sent",
    "SocketFile",
    "Transport",
    "Up",
    "Wakeable",
    "Waker",
    "hookimpl",
    "register_after_fork",
    "tcp_address",
]

T = TypeVar("T")

# -- the contract ---------------------------------------------------------------------------------------------------

Peer: TypeAlias = Hashable
"""Opaque token of one connection, never reused for another one."""

SERVER: Final = "server"
"""The only peer of a client's link."""


class Sent(enum.Enum):
    """Result of `Link.send`."""

    ACCEPTED = "accepted"
    FULL = "full"
    GONE = "gone"


class Frame(NamedTuple):
    """A whole frame that a peer sent."""

    peer: Peer
    data: bytes


class Up(NamedTuple):
    """A peer is connected."""

    peer: Peer
    credentials: Credentials | None = None


class Down(NamedTuple):
    """A peer's connection has ended. Its token is not used again."""

    peer: Peer
    why: str


class Gap(NamedTuple):
    """Frames may have been lost, although no connection is known to have ended."""

    why: str


Arrival: TypeAlias = Frame | Up | Down | Gap


@dataclass(frozen=True, slots=True, kw_only=True)
class Capabilities:
    """What a transport can do. The core asks for capabilities, never for a transport's name."""

    max_frame: int
    """Bytes of the largest frame."""
    window: int | None = None
    """Bytes that may be in transit to one peer before the backend loses some. None: no bound."""
    crosses_processes: bool = True
    crosses_hosts: bool = False
    """A client on another host reaches the server by the location's host and port."""
    lossy: bool = False
    """Frames may be lost without `Down` or `Gap`."""
    sees_peers: bool = True
    """The server's link reports `Up` and `Down` of each peer even if it sends nothing."""
    attests_peers: bool = False
    """`Up` carries the peer's `Credentials`."""
    forks: bool = True
    """A process forked after the transport was used may open links. If not, start processes with exec."""


class Wakeable(Protocol):
    """Object with a descriptor that becomes readable when `Link.wait` must return."""

    def fileno(self) -> int:
        """Return that descriptor."""


class Link(Protocol):
    """One end of a transport. The module's docstring has the rules."""

    location: Location
    """As opened. For a server on port 0, with the port that the system chose."""
    capabilities: Capabilities
    """The transport's capabilities, changed by this location's options."""
    owner: int
    """Ident of the thread that may use the link. Set it to hand the link over to another thread."""

    @property
    def why(self) -> str:
        """Why the link is not connected to its peer or backend, for errors and logs. Any thread may read it.

        Empty if it is connected, or if the reason is not known. Contains the next action, and no password.
        """

    def send(self, peer: Peer, frame: bytes) -> Sent:
        """Offer one frame. Never blocks. Raises FrameTooLarge over ``capabilities.max_frame`` bytes."""

    def receive(self) -> Arrival | None:
        """Return the next arrival, or None. Never blocks."""

    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        """Wait up to ``timeout`` seconds.

        Return early when something can be received, when a frame refused as `Sent.FULL` may be accepted, or while
        ``waker`` is readable. An early return for no reason is allowed.
        """

    def check_location(self) -> None:
        """Repair what the server's location depends on, such as a removed socket file. Called twice a second.

        Raises LocationInUse or TransportError as long as that is not possible. `OwnedLink` does nothing.
        """

    def close(self, linger: float) -> None:
        """Close the link. Accepted frames may still leave for ``linger`` seconds."""


class Transport(Protocol):
    """Opens the links of one or more schemes. A plugin's hook returns it."""

    capabilities: Capabilities
    options: Mapping[str, Callable[[str], Any]]
    """Options of a location's query, each with the function that reads its text. The core removes its own options
    first, so the locations passed to `bind` and `connect` have only these."""

    def bind(self, location: Location) -> Link:
        """Open the server's link, with many peers. Raises LocationInUse, TransportError."""

    def connect(self, location: Location) -> Link:
        """Open the client's link. Its only peer, `SERVER`, may come up later. Never blocks for long."""


# -- building blocks ------------------------------------------------------------------------------------------------

_methods: dict[int, tuple[weakref.ref[Any], str]] = {}
"""Objects with the names of methods to call in a forked child, in the order of registration. The keys are numbers,
since the objects need not be hashable."""
_numbers = count(1)


def register_after_fork(callback: Callable[[], object]) -> None:
    """Call ``callback()`` in each forked child of this process.

    A method's object is referenced weakly: the registration ends with it.
    """
    if isinstance(callback, MethodType):
        # No WeakMethod: it is Python code, and the kernel must copy the pages of all code that a child runs first. Its
        # callback may also raise AttributeError when the interpreter ends, or be interrupted by a signal handler. This
        # one is C: Python adds the dead reference as the default of pop().
        number = next(_numbers)
        reference = weakref.ref(callback.__self__, functools.partial(_methods.pop, number))
        _methods[number] = reference, callback.__name__
    else:
        os.register_at_fork(after_in_child=callback)


def _call_methods() -> None:
    for reference, name in tuple(_methods.values()):
        target = reference()
        if target is not None:
            getattr(target, name)()


register_after_fork(_call_methods)


class OwnedLink:
    """Base of a link that refuses calls from other threads and from forked children.

    Call ``self._check(frame)`` first in ``send`` and ``self._check()`` first in ``receive`` and ``wait``. Implement
    ``_release``; or ask ``self._ending()`` in ``close``: it is True once, and only in the process that opened the link.
    """

    def __init__(self, location: Location, capabilities: Capabilities) -> None:
        self.location = location
        self.capabilities = capabilities
        self.owner = threading.get_ident()
        self.why = ""
        self._closed = False
        self._forked = False
        self._released = False
        self._polling = False
        """Set it around the poll of `wait`: an exception of a signal handler leaves the link as it was."""
        register_after_fork(self.after_fork)

    def check_location(self) -> None:
        """Do nothing: the location depends on nothing that another program could remove."""

    def _check(self, frame: bytes = b"") -> None:
        """Raise ForkedLinkError, LinkClosed, WrongThreadError or FrameTooLarge if the call is not allowed."""
        # One expression for the usual case, since it runs for each frame. The error is chosen elsewhere.
        if threading.get_ident() != self.owner or self._closed or self._forked:
            self._raise_misuse()
        if frame and len(frame) > self.capabilities.max_frame:
            raise FrameTooLarge(
                f"a frame of {len(frame)} bytes is over this transport's limit of {self.capabilities.max_frame}; "
                "send less in one event, or raise max_frame in the location's options at both ends"
            )

    def _raise_misuse(self) -> None:
        where = f"the link to {self.location}"
        if self._forked:
            raise ForkedLinkError(f"{where} was opened before a fork; open a new client or server here")
        if self._closed:
            raise LinkClosed(f"{where} is closed")
        raise WrongThreadError(f"{where} belongs to thread {self.owner}; hand it over by setting link.owner")

    def _ending(self) -> bool:
        """Mark the link as closed. Return True the first time, unless this process inherited the link by fork."""
        first = not self._closed
        self._closed = True
        return first and not self._forked

    def close(self, linger: float) -> None:
        """Close the link. Accepted frames may still leave for ``linger`` seconds."""
        # Each step may be repeated: a call that a signal handler has interrupted is completed by the next one.
        self._closed = True
        if not self._released and not self._forked:
            self._release(linger)
            self._released = True

    def _release(self, linger: float) -> None:
        """Release everything that the link holds: the last step of `close`, which may be repeated."""

    def recover(self) -> bool:
        """Continue after an exception of a signal handler in `send`, `receive` or `wait`; called in the same thread.

        False: a client closes the link, and opens another one. So it does unless `_polling` is set; override it to
        release locks, to end connections whose frames may be cut, and to return True.
        """
        polling, self._polling = self._polling, False
        return polling

    def after_fork(self) -> None:
        """Refuse all further use. Called in a forked child."""
        self._forked = True


UNREAD_CLEARS: Final = 64
"""Calls of `Waker.clear` of which one reads in any case."""


class Waker:
    """Ends a `Link.wait` from another thread. Any thread and any signal handler may use it."""

    _reader = _writer = -1

    def __init__(self) -> None:
        self._woken, self._unread = False, 0
        self._descriptors: list[int] = []
        # A pipe, since a signal handler may write to it. Stored by the call that creates it: a handler that raises
        # after os.pipe() has returned would leave the descriptors open.
        self._descriptors.extend(chain.from_iterable(starmap(os.pipe, ((),))))
        self._reader, self._writer = self._descriptors
        # Non-blocking, since a handler must not wait for a reader.
        os.set_blocking(self._reader, False)
        os.set_blocking(self._writer, False)

    def fileno(self) -> int:
        """Return the descriptor that is readable after `wake`."""
        return self._reader

    def wake(self) -> None:
        """Make the descriptor readable until `clear`."""
        # Set twice: `clear` in another thread may read before the write, and an exception may prevent the second.
        self._woken = True
        # A full pipe is readable already. On a closed one there is no wait left to end.
        try:  # noqa: SIM105 - `suppress` costs 0.5 us
            os.write(self._writer, b"\0")
        except OSError:
            pass
        self._woken = True

    def clear(self) -> None:
        """Make the descriptor unreadable until the next `wake`."""
        # Most waits end by a frame, and a read of nothing costs 2 us. Now and then it is read nevertheless, in case
        # both of the above have happened.
        self._unread += 1
        if not self._woken and self._unread < UNREAD_CLEARS:
            return
        self._unread, self._woken = 0, False
        try:
            while len(os.read(self._reader, 4096)) == 4096:
                pass
        except OSError:  # Nothing is left to read, or a callback of this thread has closed it.
            pass

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the descriptors. No other thread may be in `wake` or wait for the descriptor."""
        self._reader = self._writer = -1
        descriptors = getattr(self, "_descriptors", [])
        # One call: an exception of a signal handler in between would leave a descriptor open.
        with contextlib.suppress(IndexError):  # Two threads close it.
            any(map(os.close, starmap(descriptors.pop, repeat((), len(descriptors)))))


JOIN_POLL_S: Final = 0.05
"""Upper bound of one wait of `DaemonThread.join`: an interrupted call of another thread may have taken the bell."""


def next_item(items: SimpleQueue[T], timeout: float) -> T:
    """Return the next item of a queue. Raises Empty after ``timeout`` seconds."""
    # After a put(), get() of CPython 3.11 finds the lock of the queue free and looks at the clock again: if the time is
    # over then, it waits without end. get_nowait() takes the lock.
    try:
        return items.get_nowait()
    except Empty:
        return items.get(timeout=timeout)


class DaemonThread:
    """A daemon thread that the first of several calls of `start` starts, from any thread and any signal handler.

    It begins once ``is_needed`` has returned True, and never if that returns False.
    """

    # An exception of a signal handler within Thread.start() leaves an entry in threading.enumerate(), or becomes
    # "RuntimeError: release unlocked lock". So another thread calls it, which runs no handlers, and which one call of C
    # has started. That one waits for the need: an object that lives shortly costs one thread, not two.

    def __init__(self, target: Callable[[], object], name: str, is_needed: Callable[[], bool] | None = None) -> None:
        self._target, self._name, self._is_needed = target, name, is_needed
        self._starters: list[int] = []
        self._elected: dict[int, object] = {}
        self._thread: threading.Thread | None = None
        self._begun = False
        """Whether the thread is running, or will never be needed."""
        self._bell: SimpleQueue[None] = SimpleQueue()
        """Rung once `_begun` is set."""

    def start(self) -> None:
        """Start the thread, unless it was started. Raises RuntimeError if there can be no thread."""
        if not self._starters:
            self._starters.extend(starmap(_thread.start_new_thread, ((self._start, ()),)))

    @property
    def started(self) -> bool:
        """Whether the thread was started."""
        return bool(self._starters)

    def join(self, timeout: float) -> None:
        """Wait until the thread has ended, for at most ``timeout`` seconds, unless this is the thread."""
        deadline = time.monotonic() + timeout
        while self._starters and not self._begun and (left := deadline - time.monotonic()) > 0:
            with contextlib.suppress(Empty):
                next_item(self._bell, min(left, JOIN_POLL_S))
                self._bell.put(None)
        if self._thread is not None and self._thread is not threading.current_thread():
            self._thread.join(max(0.0, deadline - time.monotonic()))

    def _start(self) -> None:
        me = object()  # Not the ident of this thread, which the next one may have as well.
        if self._elected.setdefault(0, me) is not me:
            return  # Two threads have called start().
        if self._is_needed is None or self._is_needed():
            thread = threading.Thread(target=self._target, name=self._name, daemon=True)
            try:
                thread.start()
                self._thread = thread
            except RuntimeError:  # There is no second thread: run in this one.
                self._target()
        self._begun = True
        self._bell.put(None)


MAX_WAIT_S: Final = 24 * 3600.0
"""Limit of one wait. Python refuses to poll for more than 2**31 ms."""
MAX_EVENTS: Final = 64
"""Descriptors that one `Poller.poll` returns at most. The others follow in the next call."""


class Poller:
    """Level-triggered poll of many descriptors. Events are those of `select.poll`, timeouts are seconds.

    It uses epoll where there is one, so that a poll without events costs the same for 1 and for 1,000 descriptors.
    """

    def __init__(self) -> None:
        self._epoll = select.epoll() if hasattr(select, "epoll") else None
        self._poll = self._epoll or select.poll()
        self._waker: Wakeable | None = None

    def register(self, source: Wakeable | int, events: int) -> None:
        """Add a descriptor."""
        self._poll.register(source, events)

    def modify(self, source: Wakeable | int, events: int) -> None:
        """Change the events of a descriptor."""
        self._poll.modify(source, events)

    def unregister(self, source: Wakeable | int) -> None:
        """Remove a descriptor. Call it before the descriptor is closed."""
        self._poll.unregister(source)

    def watch_waker(self, waker: Wakeable | None) -> None:
        """Poll ``waker``, if given, and no other waker, until `unwatch_waker`."""
        if waker is self._waker:
            return
        self._remove_waker()
        if waker is not None:
            # Registered already if Ctrl-C interrupted an earlier call before the assignment below.
            with contextlib.suppress(FileExistsError):
                self._poll.register(waker.fileno(), select.POLLIN)
            self._waker = waker

    def unwatch_waker(self) -> None:
        """Stop polling the waker. An epoll keeps it registered for the next wait, which saves two system calls."""
        if self._epoll is None:
            self._remove_waker()

    def _remove_waker(self) -> None:
        waker, self._waker = self._waker, None
        # The kernel removes a closed descriptor by itself.
        if waker is not None and waker.fileno() >= 0:
            with contextlib.suppress(FileNotFoundError, KeyError):
                self._poll.unregister(waker.fileno())

    def poll(self, timeout: float) -> list[tuple[int, int]]:
        """Wait up to ``timeout`` seconds; return the ready descriptors, each with its events."""
        timeout = min(timeout, MAX_WAIT_S)
        if self._epoll is not None:
            return self._epoll.poll(timeout, MAX_EVENTS)
        return self._poll.poll(timeout * 1000)

    def close(self) -> None:
        """Close the epoll. May be called twice."""
        if self._epoll is not None:
            self._epoll.close()


def tcp_address(location: Location, *, binding: bool) -> str:
    """Return ``tcp://host:port`` for a location that has these and nothing else. Raises BadLocation."""
    if location.username or location.password:
        raise BadLocation(
            f"{location} names a user, which {location.scheme} does not support: remove the part before the @"
        )
    if not location.host or location.port is None or location.path.strip("/"):
        raise BadLocation(f"{location} needs a host and a port and no more, as in {location.scheme}://127.0.0.1:5555")
    if not binding and (location.port == 0 or location.host == "*"):
        raise BadLocation(
            f"{location} cannot be connected to: write the server's host, and its port from `server.location`"
        )
    host = f"[{location.host}]" if ":" in location.host else location.host
    return f"tcp://{host}:{location.port}"


MAX_LOCK_ATTEMPTS: Final = 100
"""Attempts to lock a file that another process keeps replacing."""
TOUCH_INTERVAL_S: Final = 3600.0
"""Seconds between two updates of the modification times of a `FileLock`'s files."""


class FileLock:
    """Exclusive right to use ``path``: a lock on ``<path>.lock``, which the kernel releases when the holder dies.

    In a forked child it is released without effect on the parent. Raises LocationInUse while another holder exists in
    any process, and TransportError if the file cannot be created.
    """

    _descriptor = -1

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock_path = path + ".lock"
        self._descriptor = self._acquire()
        self._touch_at = time.monotonic() + TOUCH_INTERVAL_S
        # Close, but do not unlock: the lock belongs to the open file, which the child shares with its parent.
        register_after_fork(self._close)

    def fileno(self) -> int:
        """Return the descriptor of the lock file; -1 after `release`."""
        return self._descriptor

    def renew(self) -> None:
        """Lock the path again if the lock file was removed or replaced. Mark both files as used from time to time.

        Raises LocationInUse if another holder has locked the path since, and TransportError.
        """
        if not _is_name_of(self._lock_path, self._descriptor):
            former, self._descriptor = self._descriptor, self._acquire()
            os.close(former)
        elif time.monotonic() >= self._touch_at:
            # Programs that clean /tmp remove files that have not been used for days.
            self._touch_at = time.monotonic() + TOUCH_INTERVAL_S
            for path in (self._lock_path, self.path):
                with contextlib.suppress(OSError):
                    os.utime(path)

    def release(self) -> None:
        """Release the lock and remove its file. May be called twice."""
        if self._descriptor >= 0:
            # Unlink before unlock: a process that opened the file in between sees in `_acquire` that it has lost its
            # name, and creates another one.
            with contextlib.suppress(OSError):
                if _is_name_of(self._lock_path, self._descriptor):
                    os.unlink(self._lock_path)  # noqa: PTH108
            # Closing is not enough to unlock: a child that is just being started may hold a copy of the descriptor.
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
            self._close()

    def _close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    __del__ = _close

    def _acquire(self) -> int:
        for _ in range(MAX_LOCK_ATTEMPTS):
            descriptor = -1
            try:
                descriptor = self._open()
                # flock() and not fcntl() locks: those end when the process closes any descriptor of the file, and do
                # not exclude another holder in the same process.
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_name_of(self._lock_path, descriptor):
                    return descriptor
            except BaseException as error:
                if descriptor >= 0:
                    os.close(descriptor)
                if isinstance(error, BlockingIOError):
                    raise LocationInUse(f"{self.path} has a server already; stop it or choose another path") from error
                raise
            os.close(descriptor)
        raise TransportError(f"cannot lock {self._lock_path}: replaced {MAX_LOCK_ATTEMPTS} times; try again")

    def _open(self) -> int:
        try:
            return os.open(self._lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            full = error.errno in (errno.EMFILE, errno.ENFILE)
            advice = "raise ulimit -n" if full else "create its folder, or choose a path you may write to"
            raise TransportError(f"cannot create {self._lock_path}: {error.strerror}; {advice}") from error


class SocketFile:
    """The file of a server's socket and the right to use its path, which other programs may remove or replace.

    Call `mark_bound` after the socket is bound, and `is_intact` about twice a second. Raises LocationInUse while
    another server holds the path or a program answers there, and TransportError.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = FileLock(path)
        self._status: os.stat_result | None = None
        try:
            remove_dead_socket(path)
        except BaseException:
            self._lock.release()
            raise

    def mark_bound(self) -> None:
        """Remember the file of the socket that has just been bound. No other user may connect to it."""
        os.chmod(self.path, 0o600)  # noqa: PTH101
        # Compared by inode, which no other file gets while the socket is open: a bound socket refers to its inode.
        self._status = os.lstat(self.path)

    @property
    def is_own(self) -> bool:
        """Whether the file at the path is the one that was bound."""
        try:
            return self._status is not None and os.path.samestat(self._status, os.lstat(self.path))
        except OSError:
            return False

    def is_intact(self) -> bool:
        """Return False if the file was removed, so that the socket must be bound again. The path is free then.

        Raises LocationInUse if another server or program has taken the path over, and TransportError.
        """
        self._lock.renew()
        if not self.is_own:
            remove_dead_socket(self.path)
            return False
        return True

    def unlink(self) -> None:
        """Remove the file if it is the one that was bound. Call it before the socket is closed."""
        if self.is_own:
            with contextlib.suppress(OSError):
                os.unlink(self.path)  # noqa: PTH108
        self._status = None

    def release(self) -> None:
        """Release the path. May be called twice."""
        self._lock.release()


def _is_name_of(path: str, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))  # noqa: PTH116
    except OSError:
        return False
