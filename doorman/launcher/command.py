"""The command launcher: each worker is started as a program of its own, behind a wrapper such as nice or sudo."""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from doorman.errors import LaunchRefused
from doorman.launcher import Exited, Launched, LaunchFailed, Order, Reach
from doorman.launcher.base import EpollLauncher
from doorman.launcher.launch_messages import interpreter_flags, pack_order
from doorman.process import Process

__all__ = ["CommandLauncher"]

KILL_WAIT_S = 2.0
"""Time to wait for a worker that was killed because its pidfd could not be opened."""
_IGNORED = "this process ignores SIGCHLD, so the kernel reaps its children and may reuse their pids; set it to SIG_DFL"
_BACK_PRESSURE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class CommandLauncher(EpollLauncher):
    """Starts ``[*prefix, python, *worker]`` for each order; the prefix must run what follows it.

    The reported process is the wrapper; the worker's own is known from its hello. ``inherits`` is True if the wrapper
    passes descriptors on: then the order comes on the one whose number is the worker's last argument. Otherwise (sudo)
    it comes on standard input. Both reach their end of file when the manager ends.

    reach -- where a worker is accepted: below the wrapper; `Reach.HOST` for a wrapper that lets a daemon of this host
    start it (docker exec); `Reach.ANYWHERE` for one that reaches another host (ssh): its worker proves only that it has
    the secret, and only the wrapper can be signalled
    """

    def __init__(
        self,
        prefix: Sequence[str] = (),
        *,
        inherits: bool = True,
        reach: Reach = Reach.BELOW,
        python: Sequence[str] = (),
        worker: Sequence[str] = ("-m", "doorman._worker"),
    ) -> None:
        self._command = [*prefix, *(python or [sys.executable, *interpreter_flags()]), *worker]
        self._inherits = inherits
        self._reach = reach
        super().__init__()
        self._workers: dict[int, _StartedWorker] = {}
        self._order_writers: dict[int, _OrderWriter] = {}

    def launch(self, order: Order) -> None:
        """Start a worker. Raises LaunchRefused if the system is out of processes, memory or descriptors."""
        self._check_usable()
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            self._add_event(LaunchFailed(order.attempt, _IGNORED))
            return
        try:
            worker = _StartedWorker(self._command, order, inherits=self._inherits)
        except OSError as error:
            if error.errno in _BACK_PRESSURE:
                raise LaunchRefused(f"no process can be started now: {error}") from error
            self._add_event(LaunchFailed(order.attempt, f"{self._command[0]}: {error}"))
            return
        self._workers[worker.process.fileno()] = worker
        self._order_writers[worker.order_writer.descriptor] = worker.order_writer
        self._epoll.register(worker.process, select.EPOLLIN)
        self._epoll.register(worker.order_writer.descriptor, select.EPOLLOUT)
        # A pidfd of its own for the receiver, which closes it; this launcher still watches the other one.
        process = Process(worker.process.pid, os.dup(worker.process.fileno()))
        self._add_event(Launched(order.attempt, process, self._reach))

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        for worker in self._workers.values():
            worker.stop(deadline, ours=ours)
        for descriptor in self._order_writers:
            os.close(descriptor)
        self._workers, self._order_writers = {}, {}

    def _handle(self, descriptor: int, mask: int) -> None:
        """Handle a pipe without a reader, a pipe that has room again, or the pidfd of a wrapper that has ended."""
        if descriptor in self._order_writers and mask & select.EPOLLERR:
            self._epoll.unregister(descriptor)
            os.close(self._order_writers.pop(descriptor).descriptor)
        elif descriptor in self._order_writers:
            if self._order_writers[descriptor].write():
                # It stays open: its end of file announces the end of this process, also if the wrapper ended before.
                self._epoll.modify(descriptor, 0)
        elif descriptor in self._workers:
            self._epoll.unregister(descriptor)
            self._events.append(self._workers.pop(descriptor).reap())


class _OrderWriter:
    """The writing end of the pipe that carries a worker's order."""

    def __init__(self, descriptor: int, order: bytes) -> None:
        self.descriptor = descriptor
        self._rest = memoryview(order)
        os.set_blocking(descriptor, False)

    def write(self) -> bool:
        """Write as much as fits; return whether everything is written."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self.descriptor, self._rest) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            pass  # epoll reports it as EPOLLERR.
        return True


class _StartedWorker:
    """A program that was started for one order."""

    def __init__(self, command: list[str], order: Order, *, inherits: bool) -> None:
        # A pipe, not a file: it also shows the worker the end of this process.
        theirs, ours = os.pipe()
        try:
            self._popen = subprocess.Popen(
                [*command, str(theirs if inherits else 0)],
                stdin=subprocess.DEVNULL if inherits else theirs,
                stdout=order.stdout,
                stderr=order.stderr,
                env=order.env,
                cwd=order.cwd,
                pass_fds=(theirs,) if inherits else (),
                start_new_session=True,  # A group of its own, and no terminal: a wrapper must not wait for input.
            )
        except BaseException:
            os.close(ours)
            raise
        finally:
            os.close(theirs)
        self.order_writer = _OrderWriter(ours, pack_order(order, sys_path=sys.path if inherits else None))
        self._order = order
        self.process = self._hold_process()

    def reap(self) -> Exited:
        """Kill the rest of its process group, then reap it: until then its zombie keeps the group id."""
        self.process.signal_group(signal.SIGKILL)
        return Exited(self._order.attempt, *self._wait_result())

    def stop(self, deadline: float, *, ours: bool) -> None:
        """Kill and reap it, unless it is detached or belongs to another process."""
        if not ours or self._order.detach:
            self._popen.returncode = 0  # Keeps Popen from waiting for it.
            return
        self.process.signal_group(signal.SIGKILL)
        if self.process.wait(deadline - time.monotonic()):
            self._wait_result()

    def _hold_process(self) -> Process:
        try:
            process = Process.open(self._popen.pid)
        except ProcessLookupError as error:
            self._abandon()
            raise ProcessLookupError(errno.ESRCH, f"other code of this process has reaped it; or {_IGNORED}") from error
        except OSError:
            self._abandon()
            raise
        if process.alive() and not _is_own_child(process):
            # Reaped by other code, such as waitpid(-1), and its pid reused before the pidfd was opened.
            process.close()
            self._abandon()
            raise ProcessLookupError(errno.ESRCH, "other code of this process has reaped it")
        return process

    def _abandon(self) -> None:
        os.close(self.order_writer.descriptor)  # A worker exits if it reads the end of file instead of its order.
        self._popen.kill()  # By pid, but Popen polls first whether that is still its child.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(KILL_WAIT_S)

    def _wait_result(self) -> tuple[int | None, int | None, int | None, float | None]:
        """Return exit code, signal, peak memory and processor time; all None if other code has reaped it."""
        self._popen.returncode = 0  # Keeps Popen from waiting for it.
        try:
            # WNOWAIT by pidfd first: it proves that the pid, which wait4() needs, still belongs to this zombie.
            if os.waitid(os.P_PIDFD, self.process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None, None, None, None
            _, status, usage = os.wait4(self._popen.pid, os.WNOHANG)
        except ChildProcessError:
            return None, None, None, None
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        return (code if code >= 0 else None), (-code if code < 0 else None), usage.ru_maxrss * 1024, cpu


def _is_own_child(process: Process) -> bool:
    """Return whether it is a child of this process, tested by pidfd."""
    try:
        os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
