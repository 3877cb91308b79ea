"""Zygote main: the warm process that forks the workers, holds them until it has reaped them, and ends with its manager.

One thread, one epoll. Nothing here waits but that epoll.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal's own builds enums of the old mask: ten times the time.
import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import traceback
from collections import deque
from collections.abc import Callable
from typing import NamedTuple, NoReturn, TypeAlias, cast

from doorman import process as prctl
from doorman.journal import outcome_files as lastwords
from doorman.launcher import Exited, Order
from doorman.launcher import messages as wire
from doorman.launcher.cgroup import ControlGroup
from doorman.launcher.process_exit import ExitGuard, ExitHooks
from doorman.process import pidfd_inode

__all__ = [
    "ChildProcess",
    "Entry",
    "ForkContext",
    "import_entry",
    "main",
    "own_children",
    "prepare_for_forks",
    "reserve_standard_descriptors",
    "reset_signals",
    "run_child",
    "use_line_buffering",
]


_SIGNAL_PROCESS_GROUP = 1 << 2  # PIDFD_SIGNAL_PROCESS_GROUP, Linux 6.9


class ChildProcess(NamedTuple):
    """A child that has not been reaped: until then its number is its own."""

    attempt: str | None  # None: an orphan of a task that has ended
    pid: int
    pidfd: int
    detach: bool
    record: str | None = None

    def kill(self) -> None:
        """Kill it and its process group."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, _SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno == errno.EINVAL:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            # An orphan leads no group; a program may be another user's by now.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def own_children() -> set[int]:
    """Return the numbers of this process's children, orphans that came to it included."""
    try:
        with open("/proc/thread-self/children", "rb", buffering=0) as file:  # noqa: PTH123 - once per child
            return {int(pid) for pid in (file.read(1 << 20) or b"").split()}
    except FileNotFoundError:  # A kernel built without it.
        return set()


class ForkContext(NamedTuple):
    """The zygote, as its child finds it: what the child came with and must not keep."""

    pid: int
    descriptors: list[int]
    group: ControlGroup
    hooks: ExitHooks


def run_child(entry: Entry, order: Order, standard: list[int | None], parent: ForkContext) -> NoReturn:
    """Turn this fork of a zygote into a worker, run ``entry`` with its order, and end the process.

    ``standard`` is what becomes standard output and error.
    """
    with ExitGuard() as leaving:
        _separate(parent, detach=order.detach)
        _set_up_process(order, standard)
        wire.close_all(parent.descriptors)
        parent.hooks.clear_inherited()
        _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
        leaving.code = entry(order)
    raise AssertionError("a process that has left")


def _separate(parent: ForkContext, *, detach: bool) -> None:
    """Lead a group, end with the zygote, and keep the orphans of this task apart from those of others."""
    if detach:
        parent.group.leave()
    elif not prctl.die_with_parent(parent.pid):
        os._exit(1)
    os.setpgid(0, 0)
    prctl.become_subreaper()


def _set_up_process(order: Order, standard: list[int | None]) -> None:
    for number, descriptor in enumerate(standard, 1):
        if descriptor is not None:
            os.dup2(descriptor, number)
    if order.env is not None:
        os.environ.clear()
        os.environ.update(order.env)
    if order.cwd is not None:
        os.chdir(order.cwd)


Entry: TypeAlias = Callable[[Order], int | None]
"""What a child runs; its value is the exit code."""


def reserve_standard_descriptors() -> None:
    """Occupy 0, 1 and 2 where the manager has closed them, so that nothing else ever gets these numbers."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def reset_signals() -> None:
    """Undo what the manager ignored or blocked when it started us: children must end by SIGTERM and be waited for."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def import_entry(start: wire.Start) -> Entry:
    """Import what the children need and return what they run. Raises whatever an import raises."""
    os.chdir(start.cwd)
    sys.path[:] = map(os.fsdecode, start.sys_path)
    for name in start.preload:
        importlib.import_module(name)
    entry = _find(start.entry)
    _refuse_threads()
    return entry


def prepare_for_forks() -> None:
    """Make what each child does, and the memory that each fork copies, small."""
    pidfd_inode(0)  # Remembers whether this kernel has inodes for processes.
    use_line_buffering()
    gc.collect()
    prctl.trim_heap()
    gc.freeze()  # The collector of a child must not touch, and so copy, what it shares with us.


def use_line_buffering() -> None:
    """Have each line written at once and by itself: several processes may append to one file."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
            # Also under PYTHONUNBUFFERED: that would write the text of a print and its end one after the other.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def _find(entry: str) -> Entry:
    """Return what ``module:function`` names, or what ``module:function:argument`` returns when it is called once."""
    module, _, rest = entry.partition(":")
    function, _, argument = rest.partition(":")
    found = getattr(importlib.import_module(module), function)
    return cast("Entry", found(argument) if argument else found)


def _refuse_threads() -> None:
    threading = sys.modules.get("threading")
    threads = [thread.name for thread in threading.enumerate()[1:]] if threading else []
    if threads:
        raise RuntimeError(
            f"a preloaded module started threads ({', '.join(threads)}): forks would deadlock on its locks"
        )


_BLOCKED = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
KILL_WAIT_S = 5.0
"""Seconds that the zygote waits for what it killed when its manager ended."""
_REQUESTS_AT_ONCE = 16
_OUT_OF_PROCESSES = {errno.EAGAIN, errno.ENOMEM, errno.EMFILE, errno.ENFILE}


def main(descriptor: int) -> None:
    """Serve the launcher at the other end of an inherited socket until it is gone and no child is left."""
    reserve_standard_descriptors()
    channel = socket.socket(fileno=descriptor)
    start, descriptors = wire.receive(channel)
    if not isinstance(start, wire.Start) or not descriptors:
        raise SystemExit("this program is started by doorman.launcher.zygote and by nothing else")
    reset_signals()
    try:
        entry = import_entry(start)
    except BaseException as error:
        wire.send(channel, wire.StartFailed(traceback.format_exc()[-wire.MAX_INLINE_ORDER :]))
        raise SystemExit(1) from error
    prctl.become_subreaper()
    manager, group = descriptors[0], _join_group(descriptors[1:])
    hooks = ExitHooks()
    prepare_for_forks()
    # Who ends this process is its manager. Blocked, not ignored: what reaches a child too early waits for it.
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
    zygote = _Zygote(channel, manager, group, entry, hooks)
    zygote.run()
    hooks.run()
    zygote.remove_group()
    os._exit(0)


class _Zygote:
    def __init__(
        self, channel: socket.socket, manager: int, group: ControlGroup, entry: Entry, hooks: ExitHooks
    ) -> None:
        channel.setblocking(False)
        self._channel = channel
        self._manager = manager
        self._group = group
        self._entry = entry
        self._hooks = hooks
        self._pid = os.getpid()
        self._children: dict[int, ChildProcess] = {}
        self._pids: set[int] = set()
        self._unsent: deque[tuple[wire.Message, int | None]] = deque()
        self._orphans_due = False
        self._serving = True
        self._launcher_removes_group = False
        self._epoll = select.epoll()
        self._epoll.register(channel, select.EPOLLIN)
        self._epoll.register(manager, select.EPOLLIN)

    def run(self) -> None:
        self._send(wire.Ready())
        while self._serving or self._children:
            ready = self._epoll.poll(None if self._serving or self._detached() else KILL_WAIT_S)
            if not ready:
                return
            for descriptor, _ in ready:
                self._handle(descriptor)
            self._kill_orphans()

    def remove_group(self) -> None:
        """Remove the control group, unless its manager does: that costs a zygote a move, since it is in there."""
        if not self._launcher_removes_group:
            with contextlib.suppress(OSError):
                self._group.leave()
                self._group.kill()
                self._group.remove()

    def _handle(self, descriptor: int) -> None:
        """Four cases: a child ended; the manager did; the manager takes messages again; it has sent some."""
        if descriptor in self._children:
            self._reap(self._children.pop(descriptor))
        elif not self._serving:
            return
        elif descriptor == self._manager:
            self._stop_serving()
        elif self._unsent:
            self._flush()
        else:
            self._receive_requests()

    def _receive_requests(self) -> None:
        for _ in range(_REQUESTS_AT_ONCE):
            try:
                message, descriptors = wire.receive(self._channel)
            except (BlockingIOError, ConnectionError):
                return  # The end of the manager comes again, as an end, after its last messages.
            except wire.MessageError as error:
                self._send(wire.Rejected(str(error)))
                continue
            if message is None:
                self._stop_serving()
                return
            self._handle_request(message, descriptors)
            if self._unsent:
                return  # Nothing new before the manager has heard of what is done.

    def _handle_request(self, message: wire.Message, descriptors: list[int]) -> None:
        if isinstance(message, wire.Fork):
            self._fork(message, descriptors)
        elif isinstance(message, wire.Shutdown):
            self._launcher_removes_group = True
        elif isinstance(message, wire.Kill):
            for child in self._children.values():
                if child.attempt == message.attempt:
                    child.kill()
        else:
            self._send(wire.Rejected(f"a zygote has no answer to {type(message).__name__}"))
        wire.close_all(descriptors)

    def _fork(self, request: wire.Fork, descriptors: list[int]) -> None:
        if len(descriptors) != (request.order is None) + request.stdout + request.stderr:
            self._send(wire.ForkFailed(request.attempt, "the zygote is out of file descriptors", True))
            return
        try:
            order, standard = _unpack_fork(request, descriptors)
            pid = os.fork()
        except OSError as error:
            self._send(wire.ForkFailed(request.attempt, f"fork: {error}", error.errno in _OUT_OF_PROCESSES))
        except wire.MessageError as error:
            self._send(wire.ForkFailed(request.attempt, str(error), False))
        else:
            if pid == 0:
                own = [self._channel.detach(), self._manager, self._epoll.fileno(), *self._children]
                parent = ForkContext(
                    self._pid, [*own, *self._group.descriptors, *descriptors], self._group, self._hooks
                )
                run_child(self._entry, order, standard, parent)
            self._register_child(order, pid)

    def _register_child(self, order: Order, pid: int) -> None:
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
            self._send(wire.ForkFailed(order.attempt, f"pidfd: {error}", error.errno in _OUT_OF_PROCESSES))
            return
        self._children[pidfd] = ChildProcess(order.attempt, pid, pidfd, order.detach, order.record)
        self._pids.add(pid)
        self._send(wire.Forked(order.attempt, pid, pidfd_inode(pidfd)), pidfd)

    def _reap(self, child: ChildProcess) -> None:
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
                lastwords.write_exit(child.record, exited)
            self._send(wire.ChildExited(child.attempt, exit_code, number, usage.ru_maxrss * 1024, cpu))

    def _kill_orphans(self) -> None:
        """Kill the orphans that came to us. Every worker adopts its own: ours are those of workers that ended."""
        if not self._orphans_due:
            return
        self._orphans_due = False
        for pid in own_children() - self._pids:
            os.kill(pid, signal.SIGKILL)
            pidfd = os.pidfd_open(pid)
            self._epoll.register(pidfd, select.EPOLLIN)
            self._children[pidfd] = ChildProcess(None, pid, pidfd, detach=False)
            self._pids.add(pid)

    def _stop_serving(self) -> None:
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

    def _send(self, message: wire.Message, pidfd: int | None = None) -> None:
        if not self._serving:
            return
        if not self._unsent and self._try_send(message, pidfd):
            return
        if not self._unsent:
            self._epoll.modify(self._channel, select.EPOLLOUT)
        # The child may be reaped and its pidfd closed before the manager listens again.
        self._unsent.append((message, None if pidfd is None else os.dup(pidfd)))

    def _flush(self) -> None:
        while self._unsent and self._try_send(*self._unsent[0]):
            self._drop()
        if not self._unsent and self._serving:
            self._epoll.modify(self._channel, select.EPOLLIN)

    def _drop(self) -> None:
        _, pidfd = self._unsent.popleft()
        if pidfd is not None:
            os.close(pidfd)

    def _try_send(self, message: wire.Message, pidfd: int | None) -> bool:
        try:
            wire.send(self._channel, message, () if pidfd is None else (pidfd,))
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # The end of the channel is read as such in its turn.
        return True


def _join_group(descriptors: list[int]) -> ControlGroup:
    """Return the control group that the manager made for this process, which is in it now, if it may be."""
    group = ControlGroup(*descriptors)
    try:
        group.join()
    except OSError:
        group.close()
    return group


def _unpack_fork(request: wire.Fork, descriptors: list[int]) -> tuple[Order, list[int | None]]:
    """Return the order, and what is to be its standard output and error. Raises OSError, wire.WireError."""
    carried = iter(descriptors)
    data = wire.read_memfd(next(carried)) if request.order is None else request.order
    standard = [next(carried) if given else None for given in (request.stdout, request.stderr)]
    return wire.decode_order(data), standard
