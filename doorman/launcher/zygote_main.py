"""Zygote main: the warm process that forks the workers, holds them until it has reaped them, and ends with its manager.

One thread, one epoll. Nothing here waits but that epoll.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import signal
import socket
import traceback
from collections import deque

from doorman import prctl
from doorman.journal import lastwords
from doorman.launcher import Exited, Order, warmup, wire
from doorman.launcher.cgroup import ControlGroup
from doorman.launcher.child import Parent, become
from doorman.launcher.children import Child, own_children
from doorman.launcher.leaving import ExitHooks
from doorman.process import pidfd_inode

__all__ = ["main"]

_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
PATIENCE = 5.0
"""Seconds that the zygote waits for what it killed when its manager ended."""
_REQUESTS_AT_ONCE = 16
_OUT_OF_PROCESSES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def main(descriptor: int) -> None:
    """Serve the launcher at the other end of an inherited socket until it is gone and no child is left."""
    warmup.keep_standard_descriptors()
    channel = socket.socket(fileno=descriptor)
    start, descriptors = wire.receive(channel)
    if not isinstance(start, wire.Start) or not descriptors:
        raise SystemExit("this program is started by doorman.launcher.zygote and by nothing else")
    warmup.default_signals()
    try:
        entry = warmup.imported(start)
    except BaseException as error:
        wire.send(channel, wire.Broken(traceback.format_exc()[-wire.INLINE :]))
        raise SystemExit(1) from error
    prctl.adopt_orphans()
    manager, group = descriptors[0], _joined(descriptors[1:])
    hooks = ExitHooks()
    warmup.settle()
    # Who ends this process is its manager. Blocked, not ignored: what reaches a child too early waits for it.
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
    zygote = _Zygote(channel, manager, group, entry, hooks)
    zygote.run()
    hooks.run()
    zygote.dissolve()
    os._exit(0)


class _Zygote:
    def __init__(
        self, channel: socket.socket, manager: int, group: ControlGroup, entry: warmup.Entry, hooks: ExitHooks
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._manager = manager
        self._group = group
        self._entry = entry
        self._hooks = hooks
        self._pid = os.getpid()
        self._children: dict[int, Child] = {}
        self._pids: set[int] = set()
        self._unsent: deque[tuple[wire.Message, int | None]] = deque()
        self._orphans_due = False
        self._serving = True
        self._parted = False
        self._epoll = select.epoll()
        self._epoll.register(channel, select.EPOLLIN)
        self._epoll.register(manager, select.EPOLLIN)

    def run(self) -> None:
        self._say(wire.Ready())
        while self._serving or self._children:
            ready = self._epoll.poll(None if self._serving or self._detached() else PATIENCE)
            if not ready:
                return
            for descriptor, _ in ready:
                self._handle(descriptor)
            self._sweep()

    def dissolve(self) -> None:
        """Remove the control group, unless its manager does: that costs a zygote a move, since it is in there."""
        if not self._parted:
            with contextlib.suppress(OSError):
                self._group.leave()
                self._group.kill()
                self._group.remove()

    def _handle(self, descriptor: int) -> None:
        """Four cases: a child ended; the manager did; the manager takes messages again; it has sent some."""
        if descriptor in self._children:
            self._bury(self._children.pop(descriptor))
        elif not self._serving:
            return
        elif descriptor == self._manager:
            self._end_service()
        elif self._unsent:
            self._flush()
        else:
            self._listen()

    def _listen(self) -> None:
        for _ in range(_REQUESTS_AT_ONCE):
            try:
                message, descriptors = wire.receive(self._channel)
            except (BlockingIOError, ConnectionError):
                return  # The end of the manager comes again, as an end, after its last messages.
            except wire.WireError as error:
                self._say(wire.Complaint(str(error)))
                continue
            if message is None:
                self._end_service()
                return
            self._obey(message, descriptors)
            if self._unsent:
                return  # Nothing new before the manager has heard of what is done.

    def _obey(self, message: wire.Message, descriptors: list[int]) -> None:
        if isinstance(message, wire.Fork):
            self._fork(message, descriptors)
        elif isinstance(message, wire.Over):
            self._parted = True
        elif isinstance(message, wire.Kill):
            for child in self._children.values():
                if child.attempt == message.attempt:
                    child.kill()
        else:
            self._say(wire.Complaint(f"a zygote has no answer to {type(message).__name__}"))
        wire.close_all(descriptors)

    def _fork(self, request: wire.Fork, descriptors: list[int]) -> None:
        if len(descriptors) != (request.order is None) + request.stdout + request.stderr:
            self._say(wire.Failed(request.attempt, "the zygote is out of file descriptors", True))
            return
        try:
            order, standard = _unpacked(request, descriptors)
            pid = os.fork()
        except OSError as error:
            self._say(wire.Failed(request.attempt, f"fork: {error}", error.errno in _OUT_OF_PROCESSES))
        except wire.WireError as error:
            self._say(wire.Failed(request.attempt, str(error), False))
        else:
            if pid == 0:
                own = [self._channel.detach(), self._manager, self._epoll.fileno(), *self._children]
                parent = Parent(self._pid, [*own, *self._group.descriptors, *descriptors], self._group, self._hooks)
                become(self._entry, order, standard, parent)
            self._hold(order, pid)

    def _hold(self, order: Order, pid: int) -> None:
        """Take hold of a new child before anything can reap it, and tell."""
        # The child does the same for itself: whoever comes first, its group exists before anybody is told.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        try:
            pidfd = os.pidfd_open(pid)
            self._epoll.register(pidfd, select.EPOLLIN)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # By number, for once: an unreaped child of ours still has it.
            os.waitpid(pid, 0)
            self._say(wire.Failed(order.attempt, f"pidfd: {error}", error.errno in _OUT_OF_PROCESSES))
            return
        self._children[pidfd] = Child(order.attempt, pid, pidfd, order.detach, order.record)
        self._pids.add(pid)
        self._say(wire.Forked(order.attempt, pid, pidfd_inode(pidfd)), pidfd)

    def _bury(self, child: Child) -> None:
        """Reap a child, and before that, while its zombie still pins the number, what is left of its group."""
        child.kill()
        # By number, since waitid() tells no resource usage: only this line reaps it, so it is there.
        _, status, usage = os.wait4(child.pid, 0)
        self._epoll.unregister(child.pidfd)
        os.close(child.pidfd)
        self._pids.discard(child.pid)
        self._orphans_due = True
        if child.attempt is not None:
            code = os.waitstatus_to_exitcode(status)
            exit_code, number = (code, None) if code >= 0 else (None, -code)
            cpu = usage.ru_utime + usage.ru_stime
            exited = Exited(child.attempt, exit_code, number, usage.ru_maxrss * 1024, cpu)
            if child.record is not None:
                lastwords.leave_end(child.record, exited)
            self._say(wire.Ended(child.attempt, exit_code, number, usage.ru_maxrss * 1024, cpu))

    def _sweep(self) -> None:
        """Kill the orphans that came to us. Every worker adopts its own: ours are those of workers that ended."""
        if not self._orphans_due:
            return
        self._orphans_due = False
        for pid in own_children() - self._pids:
            os.kill(pid, signal.SIGKILL)
            pidfd = os.pidfd_open(pid)
            self._epoll.register(pidfd, select.EPOLLIN)
            self._children[pidfd] = Child(None, pid, pidfd, detach=False)
            self._pids.add(pid)

    def _end_service(self) -> None:
        """Go the way of the manager, with all children but the detached ones."""
        self._serving = False
        self._epoll.unregister(self._channel)
        self._epoll.unregister(self._manager)
        self._channel.close()
        while self._unsent:
            self._drop()
        for child in self._children.values():
            if not child.detach:
                child.kill()

    def _detached(self) -> bool:
        return any(child.detach for child in self._children.values())

    def _say(self, message: wire.Message, pidfd: int | None = None) -> None:
        if not self._serving:
            return
        if not self._unsent and self._sent(message, pidfd):
            return
        if not self._unsent:
            self._epoll.modify(self._channel, select.EPOLLOUT)
        # The child may be reaped and its pidfd closed before the manager listens again.
        self._unsent.append((message, None if pidfd is None else os.dup(pidfd)))

    def _flush(self) -> None:
        while self._unsent and self._sent(*self._unsent[0]):
            self._drop()
        if not self._unsent and self._serving:
            self._epoll.modify(self._channel, select.EPOLLIN)

    def _drop(self) -> None:
        _, pidfd = self._unsent.popleft()
        if pidfd is not None:
            os.close(pidfd)

    def _sent(self, message: wire.Message, pidfd: int | None) -> bool:
        try:
            wire.send(self._channel, message, () if pidfd is None else (pidfd,))
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # The end of the channel is read as such in its turn.
        return True


def _joined(descriptors: list[int]) -> ControlGroup:
    """Return the control group that the manager made for this process, which is in it now, if it may be."""
    group = ControlGroup(*descriptors)
    try:
        group.join()
    except OSError:
        group.close()
    return group


def _unpacked(request: wire.Fork, descriptors: list[int]) -> tuple[Order, list[int | None]]:
    """Return the order, and what is to be its standard output and error. Raises OSError, wire.WireError."""
    carried = iter(descriptors)
    data = wire.read_all(next(carried)) if request.order is None else request.order
    standard = [next(carried) if given else None for given in (request.stdout, request.stderr)]
    return wire.decode_order(data), standard
