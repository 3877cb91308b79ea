"""Command: the launcher that starts each worker as a program of its own, behind a wrapper such as nice or sudo."""

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
"""Seconds to wait for a worker that was killed because it could not be held."""
_IGNORED = "this process ignores SIGCHLD, so its children's numbers are free at once; set it to SIG_DFL"
_BACK_PRESSURE = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


class CommandLauncher(EpollLauncher):
    """Starts ``[*prefix, python, *worker]`` for each order; the prefix must run what follows it.

    The process reported is the wrapper's; the worker's own is known from its hello. ``inherits`` says whether the
    wrapper hands down descriptors: then the order comes on one whose number is the worker's last argument. Otherwise
    (sudo) it comes on standard input. Either one ends when the manager does.

    reach -- where a worker may be that is believed: below the wrapper; `Reach.HOST` for wrappers that have others of
    this host start it (docker exec); `Reach.ANYWHERE` for those that reach another host (ssh), whose processes prove no
    more than that they have the secret, and of which only the wrapper can be signalled
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
        # A handle of its own: who closes that must not make this launcher blind.
        process = Process(worker.process.pid, os.dup(worker.process.fileno()))
        self._add_event(Launched(order.attempt, process, self._reach))

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        for worker in self._workers.values():
            worker.stop(deadline, ours=ours)
        for descriptor in self._order_writers:
            os.close(descriptor)
        self._workers, self._order_writers = {}, {}

    def _handle(self, descriptor: int, mask: int) -> None:
        """Three cases: nobody reads an order any more; a worker takes more of it; a wrapper has ended."""
        if descriptor in self._order_writers and mask & select.EPOLLERR:
            self._epoll.unregister(descriptor)
            os.close(self._order_writers.pop(descriptor).descriptor)
        elif descriptor in self._order_writers:
            if self._order_writers[descriptor].write():
                # Kept open: its end tells the worker of ours. A wrapper may have handed over and ended long before.
                self._epoll.modify(descriptor, 0)
        elif descriptor in self._workers:
            self._epoll.unregister(descriptor)
            self._events.append(self._workers.pop(descriptor).reap())


class _OrderWriter:
    """The end by which a worker gets its order."""

    def __init__(self, descriptor: int, order: bytes) -> None:
        self.descriptor = descriptor
        self._rest = memoryview(order)
        os.set_blocking(descriptor, False)

    def write(self) -> bool:
        """Write what fits; tell whether nothing is left to write."""
        try:
            while self._rest:
                self._rest = self._rest[os.write(self.descriptor, self._rest) :]
        except BlockingIOError:
            return False
        except BrokenPipeError:
            pass  # Told once more, as an error of the descriptor.
        return True


class _StartedWorker:
    """One program started for one order."""

    def __init__(self, command: list[str], order: Order, *, inherits: bool) -> None:
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
                start_new_session=True,  # Its own group, and no terminal on which it could wait for an answer.
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
        """Reap it, and before that, while its zombie pins the number, kill what is left of its group."""
        self.process.signal_group(signal.SIGKILL)
        return Exited(self._order.attempt, *self._wait_result())

    def stop(self, deadline: float, *, ours: bool) -> None:
        """Kill and reap it; not if it is detached or another process's."""
        if not ours or self._order.detach:
            self._popen.returncode = 0  # Not to be waited for by us.
            return
        self.process.signal_group(signal.SIGKILL)
        if self.process.wait(deadline - time.monotonic()):
            self._wait_result()

    def _hold_process(self) -> Process:
        try:
            process = Process.open(self._popen.pid)
        except ProcessLookupError as error:
            self._abandon()
            raise ProcessLookupError(errno.ESRCH, f"it was reaped at once, by somebody else; or {_IGNORED}") from error
        except OSError:
            self._abandon()
            raise
        if process.alive() and not _is_own_child(process):
            # Reaped by somebody else, and its number given again, before it could be held.
            process.close()
            self._abandon()
            raise ProcessLookupError(errno.ESRCH, "it was reaped at once, by somebody else")
        return process

    def _abandon(self) -> None:
        os.close(self.order_writer.descriptor)  # A worker that finds the end instead of its order ends.
        self._popen.kill()  # By number, but it looks first whether that is a child of ours still.
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._popen.wait(KILL_WAIT_S)

    def _wait_result(self) -> tuple[int | None, int | None, int | None, float | None]:
        """Return exit code, signal, most memory and processor time; nothing where another reaper was faster."""
        self._popen.returncode = 0  # Keeps Popen from waiting for it, now or ever.
        try:
            # Looked at first by descriptor: only then does the number that wait4() needs surely mean it.
            if os.waitid(os.P_PIDFD, self.process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
                return None, None, None, None
            _, status, usage = os.wait4(self._popen.pid, os.WNOHANG)
        except ChildProcessError:
            return None, None, None, None
        code = os.waitstatus_to_exitcode(status)
        cpu = usage.ru_utime + usage.ru_stime
        return (code if code >= 0 else None), (-code if code < 0 else None), usage.ru_maxrss * 1024, cpu


def _is_own_child(process: Process) -> bool:
    """Tell whether it is a child of this process, whatever its number says."""
    try:
        os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True
