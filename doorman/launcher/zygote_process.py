"""The zygote process: forks workers on request, holds them by pidfd, reaps them, and ends with its manager.

It has one thread and one epoll, and waits only there. A forked child continues in `_Zygote._run_child`.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]  # signal.pthread_sigmask() builds enums of the old mask: 10 x slower.
import contextlib
import errno
import gc
import importlib
import os
import select
import signal
import socket
import sys
import time
import traceback
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final, NoReturn, TypeAlias, cast

from doorman import process
from doorman.launcher import Exited, Order, main_module, outcome_files
from doorman.launcher import launch_messages as messages
from doorman.launcher.cgroup import ControlGroup
from doorman.launcher.main_module import Script
from doorman.launcher.process_exit import ExitGuard, ExitHooks
from doorman.limits import set_descriptor_limit
from doorman.process import SIGNAL_PROCESS_GROUP, Descriptors, pidfd_inode

Entry: TypeAlias = Callable[[Order], int | None]
"""Function that a child calls; it returns the exit code."""

KILL_WAIT_S: Final = 5.0
"""Time that the zygote waits for the children that it killed when its manager ended."""
IMPORT_TIMEOUT_S: Final = 60
"""Time after which the kernel ends a zygote that imports the user's script."""
_REQUESTS_PER_ROUND: Final = 16  # between two rounds, ended children are reaped
_BLOCKED: Final = {signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT}
_SEES_CHILDREN: Final = os.path.exists("/proc/thread-self/children")  # noqa: PTH110  # CONFIG_PROC_CHILDREN


@dataclass(eq=False, slots=True)
class ChildProcess:
    """A child, until it and its descendants have ended. Until it is reaped the kernel does not reuse its pid."""

    pid: int
    pidfd: int
    attempt: str = ""  # Empty for another zygote, and for an orphan: a descendant of a child that has exited.
    detach: bool = False
    grace: float = 0.0
    record: str | None = None
    killed: bool = False  # Its descendants have no grace period.
    exited: Exited | None = None
    orphans: set[int] = field(default_factory=set)  # Pidfds of its descendants, which are children of the zygote now.
    kill_at: float = 0.0  # The end of their grace period, unless the manager kills them earlier; 0 before it begins.

    def kill(self) -> None:
        """Kill the child and its process group."""
        try:
            signal.pidfd_send_signal(self.pidfd, signal.SIGKILL, None, SIGNAL_PROCESS_GROUP)
        except OSError as error:
            if error.errno == errno.EINVAL:  # Before Linux 6.9.
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(self.pid, signal.SIGKILL)
            # An orphan leads no group. PermissionError: the program may have changed its user.
            with contextlib.suppress(ProcessLookupError, PermissionError):
                signal.pidfd_send_signal(self.pidfd, signal.SIGKILL)


def main(descriptor: int) -> None:
    """Serve the launcher at the other end of an inherited socket until the socket is closed and no child is left."""
    reserve_standard_descriptors()
    channel = socket.socket(fileno=descriptor)
    start, descriptors = messages.receive(channel)
    if not isinstance(start, messages.Start) or not descriptors:
        raise SystemExit("only doorman.launcher.zygote starts this program")
    reset_signals()
    try:
        entry = import_entry(start)
    except BaseException as error:
        messages.send(channel, messages.StartFailed(traceback.format_exc()[-messages.MAX_INLINE_ORDER :]))
        raise SystemExit(1) from error
    # As a subreaper the zygote becomes the parent of the orphans of a worker that has ended, and can kill them.
    process.become_subreaper()
    group = ControlGroup(*descriptors[1:])
    try:
        group.join()
    except OSError:
        group.close()
    hooks = ExitHooks()  # After the imports, which register hooks, and before the first fork.
    prepare_for_forks()
    # Only its manager ends the zygote. Blocked, not ignored: a signal that reaches a child too early stays pending.
    signal.pthread_sigmask(signal.SIG_SETMASK, _BLOCKED)
    zygote = _Zygote(channel, descriptors[0], group, entry, hooks)
    zygote._send(messages.Ready())
    zygote.run()
    hooks.run()
    zygote.remove_group()
    os._exit(0)


def apply_order(order: Order) -> None:
    """Set the environment, the working directory and the limit of descriptors of this process to those of its order."""
    if order.open_files is not None:
        set_descriptor_limit(order.open_files)
    if order.env is not None:
        os.environ.clear()
        os.environ.update(order.env)
    if order.cwd is not None:
        os.chdir(order.cwd)


# -- preparation of the zygote -------------------------------------------------------------------------------------


def reserve_standard_descriptors() -> None:
    """Open /dev/null as 0, 1 and 2 where the manager has closed them, so that no other file gets these numbers."""
    while (null := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(null, True)
    os.close(null)


def reset_signals() -> None:
    """Reset signals that the manager ignores or blocks: SIGTERM must end a child, and SIGCHLD must leave zombies."""
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGPIPE, signal.SIGXFSZ}:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())


def import_entry(start: messages.Start) -> Entry:
    """Import the modules that children need and return their entry function. Raises the exceptions of the imports.

    The entry ``module:function:argument`` is the result of calling the function with the argument.
    """
    os.chdir(start.cwd)
    sys.path[:] = map(os.fsdecode, start.sys_path)
    sys.argv[:] = map(os.fsdecode, start.argv)
    for name in start.preload:
        importlib.import_module(name)
    module, function, *argument = start.entry.split(":", 2)
    found = getattr(importlib.import_module(module), function)
    entry = found(*argument) if argument else found
    if "threading" in sys.modules and (threads := sys.modules["threading"].enumerate()[1:]):
        names = ", ".join(thread.name for thread in threads)
        raise RuntimeError(f"a preloaded module started threads ({names}): forks would deadlock on their locks")
    return cast("Entry", entry)


def prepare_for_forks() -> None:
    """Fill caches that each child would fill otherwise, and reduce the memory that a fork and a child copy."""
    pidfd_inode(0)  # Caches whether this kernel has inodes for processes.
    use_line_buffering()
    gc.collect()
    process.trim_heap()
    # A collection in a child writes to the header of each object that it visits, so it would copy nearly all shared
    # pages and reduce the rate of fresh processes from 2,350 to 971 a second. Frozen objects are not visited.
    gc.freeze()


def use_line_buffering() -> None:
    """Write each line of standard output and error in one call, because several processes may append to one file."""
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
            # Also under PYTHONUNBUFFERED, which writes the text of a print and its newline in two calls.
            stream.reconfigure(line_buffering=True, write_through=False)  # type: ignore[union-attr]


def own_children() -> set[int]:
    """Return the pids of this process's children, including orphans that were reparented to it."""
    if not _SEES_CHILDREN:
        return set()
    with open("/proc/thread-self/children", "rb", buffering=0) as file:  # noqa: PTH123 - once per child
        return {int(pid) for pid in (file.read(1 << 20) or b"").split()}


# -- the event loop of the zygote ----------------------------------------------------------------------------------


class _Zygote:
    """Serves the requests of one channel."""

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
        self._unsent: deque[tuple[messages.Message, int | None]] = deque()
        self._workers: dict[str, ChildProcess] = {}  # by attempt
        self._trees: dict[str, ChildProcess] = {}  # by attempt, those of the workers that have exited
        self._changed: dict[str, ChildProcess] = {}  # trees of which a process has exited in this round
        self._orphans_due = False
        self._serving = True
        self._launcher_removes_group = False
        self._epoll = select.epoll()
        self._epoll.register(channel, select.EPOLLIN)
        self._epoll.register(manager, select.EPOLLIN)

    def run(self) -> None:
        # One epoll for the channel, the manager's pidfd and the pidfd of each child: no SIGCHLD handler, no polling.
        while self._serving or self._children:
            ready = self._epoll.poll(self._timeout())
            if not (ready or self._trees):
                return
            for descriptor, _ in ready:
                self._handle(descriptor)
            self._adopt_orphans()
            self._update_trees()

    def _timeout(self) -> float | None:
        """Return the seconds after which there is something to do if no descriptor is ready; None for no limit."""
        if self._trees:
            return max(0.0, min(tree.kill_at for tree in self._trees.values()) - time.monotonic())
        return None if self._serving or any(child.detach for child in self._children.values()) else KILL_WAIT_S

    def remove_group(self) -> None:
        """Leave and remove the control group, which is slow; after a `Shutdown` the launcher removes it instead."""
        if not self._launcher_removes_group:
            with contextlib.suppress(OSError):
                self._group.leave()
                self._group.kill()
                self._group.remove()

    def _handle(self, descriptor: int) -> None:
        """Handle a descriptor that is ready: a child's pidfd, the manager's pidfd or the channel."""
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
        for _ in range(_REQUESTS_PER_ROUND):
            try:
                message, descriptors = messages.receive(self._channel)
            except (BlockingIOError, ConnectionError):
                return  # After a ConnectionError the remaining messages can be read, and then the end of the channel.
            except messages.MessageError:
                continue
            if message is None:
                self._stop_serving()
                return
            self._handle_request(message, descriptors)
            if self._unsent:
                return  # Backpressure: no new requests before the manager has read the answers.

    def _handle_request(self, message: messages.Message, descriptors: Descriptors) -> None:
        if isinstance(message, messages.Fork):
            self._fork(message, descriptors)
        elif isinstance(message, messages.ForkZygote) and descriptors:
            self._fork_zygote(message.script, descriptors[0])
        elif isinstance(message, messages.Shutdown):
            self._launcher_removes_group = True
        elif isinstance(message, messages.Kill):
            self._kill(message.attempt)
        descriptors.close()

    def _fork(self, request: messages.Fork, descriptors: Descriptors) -> None:
        if len(descriptors) != (request.order is None) + request.stdout + request.stderr:
            # The kernel drops received descriptors if this process has no numbers left.
            self._send(messages.ForkFailed(request.attempt, "the zygote is out of file descriptors", True))
            return
        try:
            order, standard = _unpack_fork(request, descriptors)
            pid = os.fork()
        except OSError as error:
            self._send(messages.ForkFailed(request.attempt, f"fork: {error}", error.errno in messages.OUT_OF_RESOURCES))
        except messages.MessageError as error:
            self._send(messages.ForkFailed(request.attempt, str(error), False))
        else:
            if pid == 0:
                self._run_child(order, standard, descriptors)
            self._register_child(order, pid)

    def _run_child(self, order: Order, standard: list[int | None], descriptors: Descriptors) -> NoReturn:
        """Make this fork of the zygote a worker, call the entry with its order, and end the process.

        ``standard`` holds the descriptors for standard output and error, None to inherit; ``descriptors`` are closed.
        """
        with ExitGuard() as guard:
            if order.detach:
                self._group.leave()
            elif not process.die_with_parent(self._pid):
                os._exit(1)
            os.setpgid(0, 0)
            # Not inherited by fork(). Orphans of the task become children of its worker, and of the zygote after that.
            process.become_subreaper()
            for number, descriptor in enumerate(standard, 1):
                if descriptor is not None:
                    os.dup2(descriptor, number)
            apply_order(order)
            self._close_inherited()
            messages.close_all([self._manager, *self._group.descriptors])
            descriptors.close()
            self._hooks.clear_inherited()
            _signal.pthread_sigmask(_signal.SIG_SETMASK, ())
            guard.code = self._entry(order)
        raise AssertionError("ExitGuard has ended the process")

    def _close_inherited(self) -> None:
        """Close, in a fork of the zygote, the descriptors that only the zygote needs."""
        messages.close_all([self._channel.detach(), self._epoll.fileno(), *self._children])

    def _fork_zygote(self, script: Script, descriptor: int) -> None:
        """Fork a zygote that imports the user's script once, for all processes that need it.

        If its import fails, or leaves something that forks would share or lack (see `_traces`), it ends, and each
        process imports the script, as under multiprocessing's spawn.
        """
        with contextlib.suppress(OSError):  # The launcher sees the end of the channel.
            pid = os.fork()
            if pid == 0:
                self._import_and_serve(script, descriptor)
            # It ends by itself, after its own children, which it reaps.
            self._watch_child(ChildProcess(pid, os.pidfd_open(pid), detach=True))

    def _import_and_serve(self, script: Script, descriptor: int) -> NoReturn:
        """Import the script in this fork of the zygote, and serve the requests that need it."""
        try:
            if not process.die_with_parent(self._pid):
                os._exit(1)
            process.become_subreaper()
            self._close_inherited()
            signal.alarm(IMPORT_TIMEOUT_S)  # The zygote sends SIGALRM, too, when its manager has ended.
            import random  # Before the import of the script, to find out whether that seeds it.

            before = random.getstate(), _traces()
            main_module.import_script(script)
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGALRM})
            if before == (random.getstate(), _traces()):
                prepare_for_forks()
                channel = socket.socket(fileno=descriptor)
                zygote = _Zygote(channel, self._manager, self._group, self._entry, ExitHooks())
                zygote._send(messages.Ready())
                zygote.run()
        finally:
            os._exit(0)

    def _register_child(self, order: Order, pid: int) -> None:
        """Open the pidfd of a new child before anything can reap it, and send it to the launcher."""
        # The child calls setpgid() too, so that the group exists for both before the launcher gets the pidfd.
        with contextlib.suppress(PermissionError, ProcessLookupError):
            os.setpgid(pid, pid)
        try:
            pidfd = os.pidfd_open(pid)
            worker = ChildProcess(pid, pidfd, order.attempt, order.detach, order.grace, order.record)
            self._watch_child(worker)
        except OSError as error:
            os.kill(pid, signal.SIGKILL)  # By pid, which is safe: the pid of an unreaped child is not reused.
            os.waitpid(pid, 0)
            self._send(messages.ForkFailed(order.attempt, f"pidfd: {error}", error.errno in messages.OUT_OF_RESOURCES))
            return
        self._workers[order.attempt] = worker
        self._send(messages.Forked(order.attempt, pid), pidfd)

    def _watch_child(self, child: ChildProcess) -> None:
        self._epoll.register(child.pidfd, select.EPOLLIN)
        self._children[child.pidfd] = child
        self._pids.add(child.pid)

    def _reap(self, child: ChildProcess) -> None:
        """Reap a child. `_adopt_orphans` handles its descendants, which are children of the zygote now."""
        if not _SEES_CHILDREN:
            child.kill()  # Its group, at least, has to end with it.
        # wait4() by pid, because waitid() by pidfd returns no resource usage. No other code reaps this child.
        _, status, usage = os.wait4(child.pid, 0)
        self._epoll.unregister(child.pidfd)
        os.close(child.pidfd)
        self._pids.discard(child.pid)
        self._orphans_due = True
        attempt = child.attempt
        if not attempt:
            for tree in self._trees.values():
                if child.pidfd in tree.orphans:
                    tree.orphans.discard(child.pidfd)
                    self._changed[tree.attempt] = tree
            return
        del self._workers[attempt]
        code = os.waitstatus_to_exitcode(status)
        exit_code, number = (code, None) if code >= 0 else (None, -code)
        cpu = usage.ru_utime + usage.ru_stime
        child.exited = Exited(attempt, exit_code, number, usage.ru_maxrss * 1024, cpu)
        if child.record is not None:
            outcome_files.write_exit(child.record, child.exited)
        child.killed |= not (self._serving or child.detach)
        self._trees[attempt] = self._changed[attempt] = child

    def _adopt_orphans(self) -> None:
        """Assign the processes that were reparented to the zygote to the trees of which a process has exited.

        The process group shows the tree. Without it, a process belongs to all trees in question: it is killed with the
        last of them.
        """
        while self._orphans_due:
            self._orphans_due = False
            for pid in own_children() - self._pids:
                if os.waitpid(pid, os.WNOHANG)[0]:
                    self._orphans_due = True  # Perhaps it exited after the read, and its children are not in the list.
                    continue
                pidfd = os.pidfd_open(pid)
                self._watch_child(ChildProcess(pid, pidfd))
                group = os.getpgid(pid)
                trees = [tree for tree in self._trees.values() if tree.pid == group] or self._changed.values()
                for tree in trees:
                    tree.orphans.add(pidfd)
                if all(tree.killed for tree in trees):
                    self._children[pidfd].kill()

    def _update_trees(self) -> None:
        """Report the trees that have ended, and those that run on, which the manager kills unless it stops the task."""
        changed, self._changed = self._changed, {}
        for attempt, tree in changed.items():
            if tree.killed or not tree.orphans:
                self._end_tree(tree)
            elif not tree.kill_at:
                tree.kill_at = time.monotonic() + tree.grace
                self._send(messages.OrphansLeft(attempt))
        for tree in [tree for tree in self._trees.values() if tree.kill_at <= time.monotonic()]:
            self._kill(tree.attempt)

    def _end_tree(self, tree: ChildProcess) -> None:
        if self._trees.pop(tree.attempt, None) is not None and tree.exited is not None:
            self._send(messages.ChildExited(*tree.exited))  # type: ignore[arg-type]  # all fields are known here

    def _kill(self, attempt: str) -> None:
        """Kill the child of an attempt, or what an exited one has left, except what also belongs to another tree."""
        child = self._workers.get(attempt) or self._trees.get(attempt)
        if child is None:
            return
        child.killed = True
        if child.exited is None:
            child.kill()
            return
        kept: set[int] = set().union(*(other.orphans for other in self._trees.values() if not other.killed))
        for orphan in child.orphans - kept:
            self._children[orphan].kill()
        self._end_tree(child)

    def _stop_serving(self) -> None:
        """After the manager's end, close the channel and kill all children that are not detached."""
        self._serving = False
        self._epoll.unregister(self._channel)
        self._epoll.unregister(self._manager)
        self._channel.close()
        while self._unsent:
            self._drop_first()
        kept: set[int] = set().union(*(tree.orphans for tree in self._trees.values() if tree.detach))
        for child in self._children.values():
            if not child.detach and child.pidfd not in kept:
                child.kill()
            elif child.detach and not child.attempt:  # A fork of this zygote: it ends unless its script is imported.
                signal.pidfd_send_signal(child.pidfd, signal.SIGALRM)
        self._changed.update(self._trees)
        for tree in self._trees.values():
            tree.killed = not tree.detach

    def _send(self, message: messages.Message, pidfd: int | None = None) -> None:
        if not self._serving:
            return
        if not self._unsent and self._try_send(message, pidfd):
            return
        if not self._unsent:
            # Room for answers, not requests.
            self._epoll.modify(self._channel, select.EPOLLOUT)
        # A duplicate, because the child may be reaped and its pidfd closed before the message is sent.
        self._unsent.append((message, None if pidfd is None else os.dup(pidfd)))

    def _flush(self) -> None:
        while self._unsent and self._try_send(*self._unsent[0]):
            self._drop_first()
        if not self._unsent and self._serving:
            self._epoll.modify(self._channel, select.EPOLLIN)

    def _drop_first(self) -> None:
        _, pidfd = self._unsent.popleft()
        if pidfd is not None:
            os.close(pidfd)

    def _try_send(self, message: messages.Message, pidfd: int | None) -> bool:
        try:
            messages.send(self._channel, message, () if pidfd is None else (pidfd,))
        except BlockingIOError:
            return False
        except ConnectionError:
            pass  # `_receive_requests` handles the end of the channel.
        return True


def _traces() -> tuple[object, ...]:
    """Return what forks of this process would share, or lack, in contrast to new programs."""
    threads = sys.modules["threading"].active_count() if "threading" in sys.modules else 1
    return (
        threads,
        os.listdir("/proc/self/fd"),  # noqa: PTH208 - numbers
        own_children(),
        ExitHooks.count(),
        "numpy.random" in sys.modules,  # Its global generator is seeded when it is imported.
    )


def _unpack_fork(request: messages.Fork, descriptors: list[int]) -> tuple[Order, list[int | None]]:
    """Return the order, and the descriptors for standard output and error. Raises OSError, MessageError."""
    carried = iter(descriptors)
    data = messages.read_memfd(next(carried)) if request.order is None else request.order
    standard = [next(carried) if given else None for given in (request.stdout, request.stderr)]
    return messages.decode_order(data), standard
