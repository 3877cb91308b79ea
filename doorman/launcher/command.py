"""The command launcher, which starts each worker as a separate program, behind a wrapper such as nice or sudo."""

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

from doorman.launcher import DescendantsLeft, Exited, Launched, LaunchFailed, Order, Reach
from doorman.launcher.base import EpollLauncher, python_command
from doorman.launcher.launch_messages import close_all, pack_order
from doorman.process import Descriptors, Process, processes_of_group

__all__ = ["CommandLauncher"]

KILL_WAIT_S = 2.0
"""Time to wait for a worker that was killed because its pidfd could not be opened."""
_IGNORED = "this process ignores SIGCHLD, so the kernel reaps its children and may reuse their pids; set it to SIG_DFL"
_REAPED = f"other code of this process, such as waitpid(-1), has reaped the worker; or {_IGNORED}"


class CommandLauncher(EpollLauncher):
    """Starts ``[*prefix, python, *worker]`` for each order. The prefix is a wrapper that runs the rest as a command.

    The reported process is the wrapper; the worker's process is known from its hello.

    inherits -- True if the wrapper passes descriptors on: the worker's last argument is the number of the descriptor
    that carries the order. False (sudo) if the order must come on standard input. Both reach their end of file when
    the manager ends.
    reach -- where a worker is accepted: below the wrapper; `Reach.HOST` for a wrapper that lets a daemon of this host
    start the worker (docker exec); `Reach.ANYWHERE` for a wrapper that reaches another host (ssh): the worker proves
    only that it has the secret, and only the wrapper can be signalled
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
        self._command = [*prefix, *(python or python_command()), *worker]
        self._inherits = inherits
        self.reach = reach
        super().__init__()
        self._workers: dict[int, _StartedWorker] = {}
        # By pidfd, the processes of a group whose leader has exited.
        self._left: dict[int, tuple[_StartedWorker, Process]] = {}
        # The unwritten rest of each order, by the descriptor of its pipe.
        self._orders: dict[int, memoryview] = {}

    def launch(self, order: Order) -> None:
        """Start a worker. Raises LaunchRefused if the system is out of processes, memory or descriptors."""
        self._check_usable()
        if signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN:
            self._add_event(LaunchFailed(order.attempt, _IGNORED))
            return
        if not self._may_enter(order):
            return
        try:
            worker = _StartedWorker(self._command, order, inherits=self._inherits)
        except OSError as error:
            program = self._command[0]
            source = " (sys.executable)" if program == sys.executable else ""
            self._start_failed(order.attempt, f"{program!r}{source}", error)
            return
        self._workers[worker.process.fileno()] = worker
        self._orders[worker.pipe] = worker.order_bytes
        self._epoll.register(worker.process, select.EPOLLIN)
        self._epoll.register(worker.pipe, select.EPOLLOUT)
        self._add_event(Launched(order.attempt, worker.reported, self.reach))

    def kill(self, attempt: str) -> None:
        """Kill a wrapper with its process group, also the processes of the group that an exited one has left."""
        workers = [*self._workers.values(), *(worker for worker, _ in self._left.values())]
        for worker in dict.fromkeys(worker for worker in workers if worker.attempt == attempt):
            worker.killed = True
            worker.process.signal_group(signal.SIGKILL)

    def _end(self, worker: _StartedWorker) -> None:
        """Reap an exited wrapper, unless processes of its group run: then it is reaped after the last of them."""
        left = [] if worker.killed else worker.group_members()
        for process in left:
            self._left[process.fileno()] = worker, process
            self._epoll.register(process, select.EPOLLIN)
        if not left:
            self._events.append(worker.reap())
        elif not worker.announced:
            worker.announced = True
            self._events.append(DescendantsLeft(worker.attempt))

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        for worker in {*self._workers.values(), *(worker for worker, _ in self._left.values())}:
            worker.stop(deadline, ours=ours)
        close_all(self._orders)
        self._workers, self._orders, self._left = {}, {}, {}

    def _handle(self, descriptor: int, mask: int) -> None:
        """Handle the pidfd of a wrapper that has ended, a pipe without a reader, or a pipe that has room again."""
        if descriptor in self._workers:
            self._epoll.unregister(descriptor)
            self._end(self._workers.pop(descriptor))
        elif descriptor in self._left:
            worker, process = self._left.pop(descriptor)
            self._epoll.unregister(descriptor)
            process.close()
            if not any(other is worker for other, _ in self._left.values()):
                self._end(worker)
        elif mask & select.EPOLLERR:
            self._epoll.unregister(descriptor)
            del self._orders[descriptor]
            os.close(descriptor)
        else:
            # The next poll reports a pipe that has lost its reader since this one.
            with contextlib.suppress(BlockingIOError, BrokenPipeError):
                while rest := self._orders[descriptor]:
                    self._orders[descriptor] = rest[os.write(descriptor, rest) :]
                # The pipe stays open: its end of file announces the end of this process, also after the wrapper's end.
                self._epoll.modify(descriptor, 0)


class _StartedWorker:
    """A program that was started for one order."""

    def __init__(self, command: list[str], order: Order, *, inherits: bool) -> None:
        self._order = order
        self.attempt = order.attempt
        self.killed = self.announced = False
        self.order_bytes = memoryview(pack_order(order, sys_path=sys.path if inherits else None))
        # A pipe, not a file: its end of file also announces the end of this process.
        theirs, self.pipe = os.pipe()
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
            os.close(self.pipe)
            raise
        finally:
            os.close(theirs)
        os.set_blocking(self.pipe, False)
        self.process = self._hold_process()

    def group_members(self) -> list[Process]:
        """Return the other processes of the wrapper's group."""
        members = processes_of_group(self.process.pid)
        try:
            _peek(self.process)
        except ChildProcessError:
            return []  # Other code has reaped the wrapper, so the group may be a later one.
        return members

    def reap(self) -> Exited:
        """Kill the rest of the process group, then reap the wrapper: until then its zombie keeps the group id."""
        self.process.signal_group(signal.SIGKILL)
        self._popen.returncode = 0  # Keeps Popen from waiting for it.
        try:
            # By pidfd first: this proves that the pid, which wait4() needs, still belongs to the zombie.
            if _peek(self.process) is not None:
                _, status, usage = os.wait4(self._popen.pid, os.WNOHANG)
                code = os.waitstatus_to_exitcode(status)
                exit_code, number = (code, None) if code >= 0 else (None, -code)
                cpu = usage.ru_utime + usage.ru_stime
                return Exited(self._order.attempt, exit_code, number, usage.ru_maxrss * 1024, cpu)
        except ChildProcessError:
            pass  # Other code has reaped it.
        return Exited(self._order.attempt, None, None)

    def stop(self, deadline: float, *, ours: bool) -> None:
        """Kill and reap the wrapper, unless it is detached or belongs to another process (not ``ours``)."""
        if not ours or self._order.detach:
            self._popen.returncode = 0  # Keeps Popen from waiting for it.
            return
        self.process.signal_group(signal.SIGKILL)
        if self.process.wait(deadline - time.monotonic()):
            self.reap()

    def _hold_process(self) -> Process:
        try:
            process = Process.open(self._popen.pid)
            if process.alive():
                _peek(process)  # If its pid was reused before the pidfd was opened, it is no child of this process.
            # The receiver closes its pidfd, so it gets a duplicate of the one that the launcher watches.
            self.reported = Process(process.pid, Descriptors(map(os.dup, (process.fileno(),))))
        except OSError as error:
            os.close(self.pipe)  # A worker exits if it reads the end of file instead of its order.
            self._popen.kill()  # By pid, but Popen polls first whether that is still its child.
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(KILL_WAIT_S)
            if isinstance(error, ProcessLookupError | ChildProcessError):
                raise ProcessLookupError(errno.ESRCH, _REAPED) from error
            raise
        return process


def _peek(process: Process) -> os.waitid_result | None:
    """Return how a child has exited, without reaping it; None if it runs. Raises ChildProcessError for no child."""
    return os.waitid(os.P_PIDFD, process.fileno(), os.WEXITED | os.WNOHANG | os.WNOWAIT)
