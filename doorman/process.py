"""Census: finding the one process on this host that a hello speaks of, whatever number it calls itself."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import select
import signal
import sys
from collections.abc import Iterator
from typing import Self

from doorman.errors import IdentityRefused, PidfdUnavailable, Refusal

__all__ = [
    "Process",
    "ancestors",
    "become_subreaper",
    "check_system",
    "die_with_parent",
    "find_process",
    "own_pid_namespace",
    "pidfd_inode",
    "process_by_inode",
    "process_in_namespace",
    "require_alive",
    "start_time",
    "trim_heap",
]


_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36

_libc = ctypes.CDLL(None, use_errno=True)
_prctl = getattr(_libc, "prctl", None)  # Absent where there is no Linux.


def die_with_parent(parent: int) -> bool:
    """Have the kernel kill this process when its parent ends; False if ``parent`` is no longer its parent.

    The kernel counts the *thread* that made this process as its parent: only for children of single-threaded
    processes and for programs started by a thread that stays.
    """
    _ask(_PR_SET_PDEATHSIG, signal.SIGKILL)
    # The parent may have ended before the kernel was asked; then nothing would ever come.
    return os.getppid() == parent


def become_subreaper() -> None:
    """Become the parent of descendants whose own parents end, however deep they are."""
    _ask(_PR_SET_CHILD_SUBREAPER, 1)


def trim_heap() -> None:
    """Give back to the kernel what is free in the heap: a fork would copy its page tables for nothing."""
    trim = getattr(_libc, "malloc_trim", None)  # Absent where the C library is not the GNU one.
    if trim is not None:
        trim(0)


def _ask(option: int, value: int) -> None:
    if _prctl is None:
        raise OSError("prctl is only on Linux")
    if _prctl(option, value, 0, 0, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


SIGNAL_PROCESS_GROUP = 1 << 2  # PIDFDSIGNAL_PROCESS_GROUP, Linux 6.9
_STAT_BYTES = 4096  # of /proc/PID/stat: 52 numbers and a name of 15 bytes are far less, and come in one piece
_MAX_GENERATIONS = 1 << 16  # steps up a chain of parents that may change while it is read


class Process:
    """A process held by a descriptor: it can end, but its number can never come to mean another process.

    Owns ``pidfd`` and closes it with `close` or with the last reference to this object.
    """

    __slots__ = ("_pidfd", "_start_time", "inode", "pid")

    inode: int | None
    """The pidfd's inode: unique for the whole boot, the same in all PID namespaces; None before Linux 6.9."""

    def __init__(self, pid: int, pidfd: int) -> None:
        self._pidfd = pidfd
        self._start_time: int | None = None
        self.pid = pid
        self.inode = pidfd_inode(pidfd)

    @classmethod
    def open(cls, pid: int) -> Self:
        """Hold the process that has this number now. Raises ProcessLookupError, PidfdUnavailable."""
        return cls(pid, _pidfd_open(pid))

    @property
    def start_time(self) -> int | None:
        """Clock ticks from boot to its start, from no wall clock; None if it ended before this was asked."""
        if self._start_time is None:
            ticks = start_time(self.pid)
            # Only the number was used to read it: it holds if the process has it still.
            self._start_time = ticks if self.alive() else None
        return self._start_time

    @property
    def closed(self) -> bool:
        """True after `close`."""
        return self._pidfd < 0

    def fileno(self) -> int:
        """Return the pidfd, readable once the process has ended. Raises ValueError after `close`."""
        if self._pidfd < 0:
            raise ValueError(f"the process {self.pid} is no longer held: it was closed")
        return self._pidfd

    def alive(self) -> bool:
        """Tell whether it still runs; a zombie does not. Raises ValueError after `close`."""
        return not self.wait(0)

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds for its end; tell whether it has ended. Never reaps."""
        poll = select.poll()
        poll.register(self.fileno(), select.POLLIN)
        return bool(poll.poll(max(0.0, timeout) * 1000))

    def signal(self, sig: int) -> bool:
        """Send it a signal; False if it has ended or is no longer held. Raises PermissionError."""
        return not self.closed and self.alive() and self._send(sig, 0)

    def signal_group(self, sig: int) -> bool:
        """Send a signal to the process group that it leads, even after its own end; False if nothing is left.

        A zombie counts until it is reaped. Where it leads none, and before Linux 6.9, the signal goes to the
        process alone. Raises PermissionError.
        """
        if self.closed:
            return False
        try:
            return self._send(sig, SIGNAL_PROCESS_GROUP) or self.signal(sig)
        except OSError as error:
            if error.errno != errno.EINVAL:
                raise
            return self.signal(sig)

    def descends_from(self, pid: int) -> bool:
        """Tell whether ``pid`` is its parent, or that one's parent, and so on; False once it has ended."""
        return pid in ancestors(self.pid) and self.alive()

    def close(self) -> None:
        """Let go of the process; it runs on. Closing twice is fine."""
        pidfd, self._pidfd = self._pidfd, -1
        if pidfd >= 0:
            os.close(pidfd)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __del__(self) -> None:
        if getattr(self, "_pidfd", -1) >= 0:
            self.close()

    def __repr__(self) -> str:
        held = "closed" if self.closed else f"inode={self.inode}"
        return f"Process({self.pid}, {held})"

    def _send(self, sig: int, flags: int) -> bool:
        try:
            signal.pidfd_send_signal(self._pidfd, sig, None, flags)
        except ProcessLookupError:
            return False
        return True


def check_system() -> None:
    """Raise PidfdUnavailable on a system that has no pidfds at all."""
    if not hasattr(os, "pidfd_open"):
        raise PidfdUnavailable(f"Doorman holds processes by pidfd, which {sys.platform} lacks; use Linux 5.4 or later")


def pidfd_inode(pidfd: int) -> int | None:
    """Return the inode by which the kernel names the process for the whole boot; None before Linux 6.9."""
    return os.fstat(pidfd).st_ino if _pidfs() else None


def start_time(pid: int | None = None) -> int | None:
    """Return the clock ticks from boot to the start of the process with this number now; None without one.

    Without a number: this process's own, also where /proc shows the numbers of another PID namespace.
    """
    fields = _stat("self" if pid is None else pid)
    return int(fields[19]) if fields else None


def ancestors(pid: int) -> list[int]:
    """Return the numbers of its parent, that one's parent, and so on, as far as this namespace shows them."""
    chain: list[int] = []
    fields = _stat(pid)
    while fields and int(fields[1]) > 0 and len(chain) < _MAX_GENERATIONS:
        chain.append(int(fields[1]))
        fields = _stat(chain[-1])
    return chain


def _stat(pid: int | str) -> list[bytes]:
    """Return the fields of /proc/PID/stat after the name, which may itself hold spaces and brackets."""
    try:
        descriptor = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)  # In a path that counts.
    except (FileNotFoundError, ProcessLookupError):
        return []
    try:
        return os.read(descriptor, _STAT_BYTES).rpartition(b")")[2].split()
    except ProcessLookupError:
        return []
    finally:
        os.close(descriptor)


def _pidfd_open(pid: int) -> int:
    check_system()
    try:
        return os.pidfd_open(pid)
    except OSError as error:
        if error.errno == errno.ENOSYS:
            raise PidfdUnavailable("Doorman holds processes by pidfd; use Linux 5.4 or later") from error
        raise


@functools.cache
def _pidfs() -> bool:
    """Tell whether pidfds have inodes of their own: until Linux 6.9 all shared one with every anonymous inode."""
    if sys.maxsize < 1 << 32:
        return False  # The inode is 64 bits wide; a narrower one wraps around.
    pidfd = _pidfd_open(os.getpid())
    anonymous = select.epoll()
    try:
        return os.fstat(pidfd).st_dev != os.fstat(anonymous.fileno()).st_dev
    finally:
        os.close(pidfd)
        anonymous.close()


def find_process(guess: int, inode: int | None, started: int | None, namespace: str, inside: int) -> Process:
    """Hold the process of which this is known. Raises IdentityRefused.

    ``guess`` is its number here, ``inside`` that in its own PID namespace. Two cases: by inode; by number and start
    time.
    """
    if inode is not None:
        process = process_by_inode(inode, guess=guess)
    else:
        process = process_in_namespace(namespace, inside, started or 0)
    if process is not None:
        return process
    if namespace == own_pid_namespace() and start_time(guess) is not None:
        raise IdentityRefused(Refusal.OTHER_PROCESS, f"pid {guess} is not the process that said hello")
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"no process here calls itself pid {guess}")


def require_alive(process: Process) -> Process:
    """Return the process. Raises IdentityRefused once it has ended."""
    if process.alive():
        return process
    raise IdentityRefused(Refusal.NO_SUCH_PROCESS, f"pid {process.pid} has ended")


def process_by_inode(inode: int, *, guess: int) -> Process | None:
    """Hold the process whose pidfd has this inode; None if none has. ``guess`` is a number to try first.

    A process in a nested PID namespace calls itself by another number, but its inode is the same there.
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
    """Hold the process that has this number inside a PID namespace and this start time; None if none has.

    For kernels whose pidfds have no inode. Sees only the processes that this user may inspect.
    """
    for candidate in _guess_first(pid):
        if _namespace_of(candidate) != namespace or _number_inside(candidate) != pid:
            continue
        process = _opened(candidate)
        if process is not None and process.start_time == started:
            return process
    return None


def _guess_first(guess: int) -> Iterator[int]:
    yield guess
    with os.scandir("/proc") as entries:
        for entry in entries:
            if entry.name.isdecimal() and int(entry.name) != guess:
                yield int(entry.name)


def _opened(pid: int) -> Process | None:
    try:
        return Process.open(pid)
    except ProcessLookupError:
        return None
    except OSError:
        # A number that is only a thread's: EINVAL until Linux 6.14, ENOENT since.
        return None


def _namespace_of(pid: int) -> str:
    try:
        return os.readlink(f"/proc/{pid}/ns/pid")  # noqa: PTH115 - as in process.py
    except OSError:  # It has ended, or belongs to somebody else.
        return ""


def _number_inside(pid: int) -> int:
    """Return what the process calls itself in the innermost of its PID namespaces; 0 if it has ended."""
    try:
        with open(f"/proc/{pid}/status", "rb") as file:  # noqa: PTH123 - as in process.py
            numbers = [line.split() for line in file if line.startswith(b"NSpid:")]
    except OSError:
        return 0
    return int(numbers[0][-1]) if numbers else pid


def own_pid_namespace() -> str:
    """Return the name of the PID namespace that this process lives in."""
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115 - as in process.py
