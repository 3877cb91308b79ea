"""Processes of this host: handles by pidfd, access to /proc and prctl, and search in other PID namespaces."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import functools
import os
import select
import signal
import sys
from collections.abc import Iterable, Iterator
from io import FileIO
from itertools import repeat, starmap
from typing import Final, Self

from doorman.errors import IdentityRefused, PidfdUnavailable, Refusal

__all__ = ["Process"]

_PR_SET_PDEATHSIG: Final = 1
_PR_SET_CHILD_SUBREAPER: Final = 36

# Indices in `stat_fields`, which begins with the third field of proc(5): state, parent, ...
STAT_PARENT: Final = 1
STAT_GROUP: Final = 2
STAT_CPU: Final = slice(11, 15)  # user and system time of the process, then of the children that it has waited for
STAT_THREADS: Final = 17
STAT_START: Final = 19
STAT_RSS_PAGES: Final = 21

_libc = ctypes.CDLL(None, use_errno=True)


def die_with_parent(parent: int) -> bool:
    """Let the kernel kill this process when its parent ends; return False if ``parent`` has ended already.

    The kernel sends the signal when the *thread* that created this process ends. So the parent must have one thread, or
    that thread must last as long as the parent.
    """
    _set_option(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # If the parent ended before the call above, the kernel sends nothing.
    return os.getppid() == parent


def become_subreaper() -> None:
    """Become a subreaper: the kernel makes this process the parent of its orphaned descendants, at any depth."""
    _set_option(_PR_SET_CHILD_SUBREAPER, 1)


def trim_heap() -> None:
    """Return free heap memory to the kernel: a fork would copy its page tables."""
    if hasattr(_libc, "malloc_trim"):  # Only in the GNU C library.
        _libc.malloc_trim(0)


def _set_option(option: int, value: int) -> None:
    if _libc.prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


SIGNAL_PROCESS_GROUP: Final = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9
_STAT_BYTES: Final = 4096  # more than /proc/PID/stat ever has: 52 numbers and a name of 15 bytes
_MAX_GENERATIONS: Final = 1 << 16  # bounds the walk up a chain of parents, which may change while it is read
_MAX_DESCENDANTS: Final = 1 << 16  # bounds the walk down a tree that grows while it is read


class Descriptors(list[int]):
    """Open descriptors that are closed with the last reference to this list.

    One call of C should open and store them, such as ``Descriptors(map(os.dup, ...))``: an exception of a signal
    handler between two calls would leave them open.
    """

    def close(self) -> None:
        """Close and remove them."""
        any(map(os.close, starmap(self.pop, repeat((), len(self)))))

    __del__ = close


class Process:
    """A handle of a process. After its end the pid may be reused, but the pidfd never refers to another process.

    It owns ``pidfds``, which holds one, and closes it with `close` or with its last reference.
    """

    __slots__ = ("_pidfds", "_start_time", "inode", "pid")

    inode: int | None
    """Inode of the pidfd: unique for the whole boot and equal in all PID namespaces; None before Linux 6.9."""

    def __init__(self, pid: int, pidfds: Descriptors) -> None:
        self._start_time: int | None = None
        self.pid, self._pidfds = pid, pidfds
        self.inode = pidfd_inode(self.fileno())

    @classmethod
    def open(cls, pid: int) -> Self:
        """Open the process that has this pid now. Raises ProcessLookupError, PidfdUnavailable."""
        check_system()
        try:
            return cls(pid, Descriptors(map(os.pidfd_open, (pid,))))
        except OSError as error:
            if error.errno == errno.ENOSYS:
                raise PidfdUnavailable("Doorman holds processes by pidfd; use Linux 5.4 or later") from error
            raise

    @property
    def start_time(self) -> int | None:
        """Clock ticks from boot to the start; None if the process ended before this was first read."""
        if self._start_time is None:
            ticks = start_time(self.pid)
            # It was read by pid. If the process still runs, the pid was not reused.
            self._start_time = ticks if self.alive() else None
        return self._start_time

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return not self._pidfds

    def fileno(self) -> int:
        """Return the pidfd, readable once the process has ended. Raises ValueError after `close`."""
        if not self._pidfds:
            raise ValueError(f"the handle of process {self.pid} is closed")
        return self._pidfds[0]

    def alive(self) -> bool:
        """Return whether the process still runs; a zombie does not. Raises ValueError after `close`."""
        return not self.wait(0)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for the end of the process; return whether it has ended. Never reaps."""
        # A pidfd is readable once the process has ended, also as a zombie. select() refuses descriptors over 1023.
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))

    def signal(self, sig: int) -> bool:
        """Send a signal; return False if the process has ended or the handle is closed. Raises PermissionError."""
        return not self.closed and self.alive() and self._send(sig, 0)

    def signal_group(self, sig: int) -> bool:
        """Send a signal to the process group that the process leads; return False if no process is left.

        This also works after the end of the process, until it is reaped. If it leads no group, and before Linux 6.9,
        only the process gets the signal. Raises PermissionError.
        """
        if self.closed:
            return False
        # An unreaped leader keeps the group id, so the signal cannot reach a later group with the same id.
        try:
            return self._send(sig, SIGNAL_PROCESS_GROUP) or self.signal(sig)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self.signal(sig)

    def signal_tree(self, *signals: int, group: bool = True) -> bool:
        """Send signals to the process and its descendants, wherever they are, and to its ``group``: once to each.

        A descendant that is forked by then gets them only within the group, of which the kernel signals all or none.
        Returns False if the process has ended and no other process has its group.
        """
        below = self._descendants(outside=self.pid if group else None)
        reached = False
        for sig in signals:
            with contextlib.suppress(PermissionError):  # Of another user, as behind sudo.
                reached |= self.signal_group(sig) if group else self.signal(sig)
            for process in below:
                with contextlib.suppress(PermissionError):
                    process.signal(sig)
        for process in below:
            process.close()
        return reached

    def _descendants(self, outside: int | None) -> list[Process]:
        """Return the living descendants, without those in the process group ``outside``."""
        if outside is not None and not has_pidfd_inodes():
            outside = None  # Before Linux 6.9 `signal_group` reaches only this process.
        below: list[Process] = []
        known, parents, found = {self.pid}, [self.pid], False
        while parents and len(known) < _MAX_DESCENDANTS:
            for pid in child_pids(parents.pop()):
                process = None if pid in known else _opened(pid)
                if process is None:
                    continue
                try:
                    fields = stat_fields(pid)
                except OSError:
                    return below  # No descriptor is left: those found so far, and the group, get the signals.
                # The pid may have been reused before its pidfd was opened, but not while the pidfd's process lives.
                if fields and int(fields[STAT_PARENT]) in known and process.alive():
                    known.add(pid)
                    parents.append(pid)
                    found = True
                    if int(fields[STAT_GROUP]) != outside:
                        below.append(process)
            if found and not parents:
                # The children of a process that has just ended are now children of this one, if it is a subreaper.
                parents, found = [self.pid], False
        return below

    def descends_from(self, pid: int) -> bool:
        """Return whether ``pid`` is an ancestor of the process; False once the process has ended."""
        return pid in ancestors(self.pid) and self.alive()

    def close(self) -> None:
        """Close the handle; the process is not affected. Closing twice is fine."""
        self._pidfds.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        held = "closed" if self.closed else f"inode={self.inode}"
        return f"Process({self.pid}, {held})"

    def _send(self, sig: int, flags: int) -> bool:
        try:
            signal.pidfd_send_signal(self.fileno(), sig, None, flags)
        except ProcessLookupError:
            return False
        return True


def absolute_path(path: str = "") -> str:
    """Return an absolute path, by default of the working directory, with its symbolic links.

    Raises FileNotFoundError with a text that says so if the working directory was deleted.
    """
    try:
        return os.path.abspath(path)  # noqa: PTH100 - keeps links
    except FileNotFoundError as error:
        reason = "the working directory of this process was deleted; change to another one"
        raise FileNotFoundError(error.errno, reason) from error


def absolute_folders(folders: Iterable[str]) -> list[bytes]:
    """Return folders for another process, which may start elsewhere; without those below a deleted one."""
    found = []
    for folder in folders:
        with contextlib.suppress(FileNotFoundError):
            found.append(os.fsencode(absolute_path(folder)))
    return found


def check_system() -> None:
    """Raise PidfdUnavailable on a system without pidfds."""
    if not hasattr(os, "pidfd_open"):
        raise PidfdUnavailable(f"Doorman holds processes by pidfd, which {sys.platform} lacks; use Linux 5.4 or later")


def pidfd_inode(pidfd: int) -> int | None:
    """Return the inode that identifies a process for the whole boot; None before Linux 6.9."""
    return os.fstat(pidfd).st_ino if has_pidfd_inodes() else None


def start_time(pid: int | None = None) -> int | None:
    """Return the clock ticks from boot to the start of the process with this pid; None if there is none.

    Without a pid, the calling process is meant, even if /proc shows the pids of another PID namespace.
    """
    fields = stat_fields("self" if pid is None else pid)
    return int(fields[STAT_START]) if fields else None


def ancestors(pid: int) -> list[int]:
    """Return the pids of the parent of ``pid``, of the grandparent and so on, as far as this namespace shows them."""
    chain: list[int] = []
    fields = stat_fields(pid)
    while fields and int(fields[STAT_PARENT]) > 0 and len(chain) < _MAX_GENERATIONS:
        chain.append(int(fields[STAT_PARENT]))
        fields = stat_fields(chain[-1])
    return chain


def stat_fields(pid: int | str) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name; an empty list if there is no such process.

    The name may contain spaces and parentheses, so the fields begin after the last parenthesis.
    """
    try:
        # Faster than open(), and each handshake and measurement of load reads this file.
        with FileIO(f"/proc/{pid}/stat") as file:
            return file.read(_STAT_BYTES).rpartition(b")")[2].split()
    except (FileNotFoundError, ProcessLookupError):
        return []


def child_pids(pid: int, *, threaded: bool = True) -> list[int]:
    """Return the children of a process; none if it has ended or the kernel was built without CONFIG_PROC_CHILDREN.

    With ``threaded=False`` only those of its main thread.
    """
    found: list[int] = []
    try:
        # No Path in these lines, because its construction takes longer than the read.
        for thread in os.listdir(f"/proc/{pid}/task") if threaded else (pid,):  # noqa: PTH208
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:  # noqa: PTH123
                found += map(int, file.read().split())
    except OSError:
        return found  # Also without a descriptor for the file.
    return found


@functools.cache
def has_pidfd_inodes() -> bool:
    """Return whether each process has an inode of its own (Linux 6.9). Before, all anonymous descriptors share one."""
    if sys.maxsize < 1 << 32:
        return False  # Where st_ino has 32 bits, the 64-bit counter wraps around.
    pidfds = Descriptors(map(os.pidfd_open, (os.getpid(),)))
    with select.epoll() as anonymous:
        return os.fstat(pidfds[0]).st_dev != os.fstat(anonymous.fileno()).st_dev


def processes_of_group(group: int) -> list[Process]:
    """Return handles of the processes in a process group, zombies excepted. Reads all of /proc."""
    found = []
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):  # noqa: PTH208 - many entries
        fields = stat_fields(pid)
        if fields and int(fields[STAT_GROUP]) == group and (process := _opened(pid)) is not None:
            fields = stat_fields(pid)  # Again: before its pidfd was opened, the pid may have been reused.
            if fields and int(fields[STAT_GROUP]) == group and process.alive():
                found.append(process)
    return found


def find_process(guess: int, inode: int | None, started: int | None, namespace: str, inside: int) -> Process:
    """Open the process with this inode or, without one, with this pid and start time. Raises IdentityRefused.

    ``guess`` is the likely pid in this PID namespace, ``inside`` the pid in the process's own ``namespace``.
    """
    if inode is not None:
        process = process_by_inode(inode, guess=guess)
    else:
        process = process_in_namespace(namespace, inside, started or 0)
    if process is not None:
        return process
    if namespace == own_pid_namespace() and start_time(guess) is not None:
        raise IdentityRefused(Refusal.OTHER_PROCESS, f"pid {guess} is not the process that sent the hello")
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"no process here has pid {guess}")


def require_alive(process: Process) -> Process:
    """Return ``process``. Raises IdentityRefused if it has ended."""
    if process.alive():
        return process
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"pid {process.pid} has ended")


def process_by_inode(inode: int, *, guess: int) -> Process | None:
    """Open the process whose pidfd has this inode; None if there is none. ``guess`` is the pid to try first.

    A process has different pids in nested PID namespaces, but the same inode.
    """
    for pid in _guess_first(guess):
        process = _opened(pid)
        if process is None:
            continue
        if process.inode == inode:
            return process
        process.close()
    return None


def process_in_namespace(namespace: str, pid: int, started: int) -> Process | None:
    """Open the process with this pid in a PID namespace and this start time; None if there is none.

    For kernels whose pidfds have no inode. Finds only processes that this user may inspect.
    """
    for candidate in _guess_first(pid):
        if _namespace_of(candidate) != namespace or _number_inside(candidate) != pid:
            continue
        process = _opened(candidate)
        if process is not None and process.start_time == started:
            return process
    return None


def _guess_first(guess: int) -> Iterator[int]:
    # The guess is right unless the process is in another PID namespace. Only then is all of /proc read.
    yield guess
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal() and int(entry.name) != guess:
                yield int(entry.name)


def _opened(pid: int) -> Process | None:
    try:
        return Process.open(pid)
    except OSError:  # It has ended, or it is a thread's id: EINVAL before Linux 6.14, ENOENT since.
        return None


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - once per candidate
    except OSError:  # It has ended, or belongs to another user.
        return ""


def _number_inside(pid: int) -> int:
    """Return the pid of a process in its own PID namespace, the innermost; 0 if the process has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - once per candidate
            numbers = [line.split() for line in file if line.startswith(b"NSpid:")]
    except OSError:
        return 0
    return int(numbers[0][-1]) if numbers else pid


def own_pid_namespace() -> str:
    """Return the name of this process's PID namespace."""
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - once per handshake
