"""The zygote launcher, which forks workers from one process that has already imported the modules they need.

The zygote is a separate program with one thread: a fork of the manager could deadlock on a lock that another thread of
the manager holds. docs/performance.md compares the rates of fresh processes.
"""

from __future__ import annotations

import contextlib
import os
import select
import signal
import socket
import subprocess
import sys
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from doorman.errors import LaunchRefused
from doorman.launcher import DescendantsLeft, Event, Exited, Launched, LaunchFailed, Order
from doorman.launcher import launch_messages as messages
from doorman.launcher.base import EpollLauncher, python_command
from doorman.launcher.cgroup import ControlGroup
from doorman.launcher.main_module import Script
from doorman.process import Descriptors, Process, absolute_folders, absolute_path

__all__ = ["ZygoteLauncher"]

KILL_WAIT_S: Final = 2.0
"""Time that `ZygoteLauncher.close` waits for the processes that it has killed."""
_MAX_FAILED_STARTS: Final = 3  # zygotes in a row that ended before they were ready
_ROOT: Final = str(Path(__file__).resolve().parents[2])
_START: Final = (
    "import sys; sys.path.insert(0, sys.argv[1]); "
    "from doorman.launcher.zygote_process import main; main(int(sys.argv[2]))"
)


class ZygoteLauncher(EpollLauncher):
    """Forks each worker from a zygote, which starts with the first `launch` or earlier with `start`.

    After the end of a zygote the next launch starts another one.

    entry -- ``"module:function"``, which each child calls with its `Order` and which returns the exit code; with
    ``"module:function:argument"`` the zygote calls the function once, and its result is the entry
    preload -- modules that the zygote imports
    sys_path, cwd -- those of the zygote; default: those of this process
    stdin -- descriptor for the standard input of all processes; None for an empty one
    """

    def __init__(
        self,
        *,
        entry: str = "doorman._worker.main:run_order",
        preload: Sequence[str] = (),
        sys_path: Sequence[str] | None = None,
        cwd: str | None = None,
        stdin: int | None = None,
    ) -> None:
        cwd, folders = cwd or absolute_path(), absolute_folders(sys_path or sys.path)
        argv = [*map(os.fsencode, getattr(sys, "argv", ()))]
        self._start = messages.Start(folders, os.fsencode(cwd), list(preload), entry, argv)
        self._stdin = stdin
        super().__init__()
        self._zygote: _ZygoteHandle | None = None
        self._dying: list[_ZygoteHandle] = []
        self._script_zygotes: dict[Script, _ZygoteLink] = {}  # Forks of the zygote that have imported a script.
        self._left_to_children: set[Script] = set()  # Scripts that each process imports.
        self._failed_starts = 0
        self._start_error = ""

    @property
    def pid(self) -> int | None:
        """The zygote's pid, for display; None while there is no zygote."""
        return None if self._zygote is None else self._zygote.process.pid

    def start(self) -> None:
        """Start the zygote now if there is none; does not wait for its imports. Raises OSError."""
        self._check_usable()
        if self._zygote is None:
            zygote = _ZygoteHandle(self._start, self._stdin)
            self._epoll.register(zygote.channel, select.EPOLLIN)
            self._zygote = zygote

    def launch(self, order: Order) -> None:
        """Request a child. Raises LaunchRefused if the zygote cannot accept a request before the next `poll`."""
        self._check_usable()
        if self._start_error:
            self._add_event(LaunchFailed(order.attempt, self._start_error))
        elif self._may_enter(order):
            try:
                self.start()
                assert self._zygote is not None
                self._with_script(self._zygote, order.script).request_fork(order)
            except (BlockingIOError, ConnectionError) as error:
                raise LaunchRefused(f"the zygote accepts no more requests now: {error}") from error
            except OSError as error:
                self._start_failed(order.attempt, f"the interpreter {sys.executable!r} (sys.executable)", error)

    def kill(self, attempt: str) -> None:
        """Kill the process of an attempt and all its descendants, also those left by an exited one."""
        for link in self._links():
            if link.request_kill(attempt):
                self._send_kills(link)
                if not link.ready:  # It may import a script for long. It kills the process as soon as it has forked it.
                    failed = messages.ForkFailed(attempt, "it was killed before its start", False)
                    self._add_event(*link.handle_message(failed, Descriptors()))

    def _links(self) -> list[_ZygoteLink]:
        return [*([self._zygote] if self._zygote else []), *self._script_zygotes.values()]

    def _with_script(self, zygote: _ZygoteHandle, script: Script | None) -> _ZygoteLink:
        """Return the fork of the zygote that has a script, made if necessary; the zygote if there is to be none."""
        if script is None or script in self._left_to_children:
            return zygote
        if script not in self._script_zygotes:
            link = _ZygoteLink()
            zygote.request_zygote(script, link)
            self._epoll.register(link.channel, select.EPOLLIN)
            self._script_zygotes[script] = link  # Last: after an interrupt above, another one is made.
        return self._script_zygotes[script]

    def _close_processes(self, deadline: float, *, ours: bool) -> None:
        zygotes = [*self._dying, *([self._zygote] if self._zygote else [])]
        # The zygote also ends after its forks, which are its children.
        keeps = not ours or any(link.detached for link in self._links())
        for link in self._script_zygotes.values():
            link.channel.close()
        for zygote in zygotes:
            zygote.disconnect(keeps=keeps)
        for zygote in zygotes:
            zygote.reap(deadline, keeps=keeps)
        self._zygote, self._dying, self._script_zygotes = None, [], {}
        ControlGroup.remove_stale(time.monotonic() + KILL_WAIT_S)

    def _handle(self, descriptor: int, mask: int) -> None:
        """Handle a zygote's channel, or the pidfd of a zygote that has ended."""
        link = next((link for link in self._links() if descriptor == link.channel.fileno()), None)
        if link is not None:
            self._send_kills(link)
            self._receive_messages(link)
        else:
            self._reap()

    def _send_kills(self, link: _ZygoteLink) -> None:
        self._epoll.modify(link.channel, select.EPOLLIN | (0 if link.send_kills() else select.EPOLLOUT))

    def _receive_messages(self, link: _ZygoteLink) -> None:
        while True:
            try:
                # Kept until it was handled: an interrupt in between may repeat a message, but must not lose it.
                message, descriptors = messages.receive(link.channel, keep=True)
            except BlockingIOError:
                return
            except ConnectionError:
                continue  # ECONNRESET, once: the zygote ended with unread orders. Its last messages can still be read.
            if message is None:
                if isinstance(link, _ZygoteHandle):
                    self._remove_zygote(link)
                    return
                # Before it is ready, it ends without the zygote if the import has failed, or must not be shared.
                failed = not link.ready and self._zygote is not None and self._zygote.process.alive()
                self._remove_script_zygote(link, failed=failed)
                return
            if isinstance(message, messages.StartFailed):
                self._start_error = message.why
            else:
                self._events += link.handle_message(message, descriptors)
                if isinstance(message, messages.ChildExited):
                    link.remove(message.attempt)
            messages.skip(link.channel)

    def _remove_script_zygote(self, link: _ZygoteLink, *, failed: bool) -> None:
        """Let the manager launch its attempts again, by another fork; after a failure each imports the script."""
        script = next(script for script, other in self._script_zygotes.items() if other is link)
        if failed:
            self._left_to_children.add(script)
        self._events += link.fail_all("")
        link.remove_all()
        self._epoll.unregister(link.channel)
        link.channel.close()
        del self._script_zygotes[script]

    def _remove_zygote(self, zygote: _ZygoteHandle) -> None:
        """Fail all attempts of a zygote that has ended. The next launch starts another zygote."""
        for link in tuple(self._script_zygotes.values()):
            self._remove_script_zygote(link, failed=False)  # It ends with the zygote.
        self._failed_starts = 0 if zygote.ready else self._failed_starts + 1
        if self._failed_starts >= _MAX_FAILED_STARTS and not self._start_error:
            count = self._failed_starts
            self._start_error = f"the zygote ended {count} times before it was ready; see its standard error"
        self._events += zygote.fail_all(self._start_error)
        zygote.kill_group()  # Also descendants that have left their process group.
        zygote.remove_all()
        self._epoll.unregister(zygote.channel)
        zygote.channel.close()
        zygote.process.signal(signal.SIGKILL)
        self._epoll.register(zygote.process, select.EPOLLIN)
        self._dying.append(zygote)
        self._zygote = None

    def _reap(self) -> None:
        for zygote in [zygote for zygote in self._dying if not zygote.process.alive()]:
            self._epoll.unregister(zygote.process)
            self._dying.remove(zygote)
            zygote.reap(time.monotonic(), keeps=False)


class _ZygoteLink:
    """The channel to a zygote, with its requested and running attempts."""

    def __init__(self) -> None:
        self.ready = False
        self.detached: set[str] = set()
        """The detached attempts among them."""
        self._requested: set[str] = set()
        self._running: dict[str, Process] = {}
        self._kills: deque[str] = deque()  # not sent yet
        # SEQPACKET preserves message boundaries and order, carries descriptors and reports the end of either process.
        self.channel, self.theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self.channel.setblocking(False)

    def request_fork(self, order: Order) -> None:
        """Send an order. Raises BlockingIOError if the channel is full, ValueError for an attempt in use."""
        if order.attempt in self._requested or order.attempt in self._running:
            raise ValueError(f"attempt {order.attempt!r} is launched already; give each attempt an id of its own")
        data = messages.encode_order(order)
        memory = messages.write_memfd(data) if len(data) > messages.MAX_INLINE_ORDER else Descriptors()
        standard = [descriptor for descriptor in (order.stdout, order.stderr) if descriptor is not None]
        inline = None if memory else data
        given = order.stdout is not None, order.stderr is not None
        request = messages.Fork(order.attempt, inline, *given)
        messages.send(self.channel, request, [*memory, *standard])
        self._requested.add(order.attempt)
        if order.detach:
            self.detached.add(order.attempt)

    def request_kill(self, attempt: str) -> bool:
        """Remember to kill an attempt; return False if it does not run."""
        known = attempt in self._running or attempt in self._requested
        if known:
            self._kills.append(attempt)
        return known

    def send_kills(self) -> bool:
        """Send the requests to kill; return False if the channel has no room for all of them now."""
        while self._kills:
            try:
                messages.send(self.channel, messages.Kill(self._kills[0]))
            except BlockingIOError:
                return False
            except ConnectionError:
                self._kills.clear()  # The zygote has ended; `poll` reports it.
                return True
            self._kills.popleft()
        return True

    def handle_message(self, message: messages.Message, descriptors: Descriptors) -> list[Event]:
        """Return the events that follow from a message."""
        if isinstance(message, messages.Ready):
            self.ready = True
        elif isinstance(message, messages.Forked):
            return [self._on_forked(message, descriptors)]
        elif isinstance(message, messages.ForkFailed):
            return [self._launch_failed(message.attempt, message.why, message.back_pressure)]
        elif isinstance(message, messages.OrphansLeft) and message.attempt in self._running:
            return [DescendantsLeft(message.attempt)]
        elif isinstance(message, messages.ChildExited) and message.attempt in self._running:
            return [Exited(message.attempt, message.exit_code, message.signal, message.max_rss, message.cpu)]
        return []

    def remove(self, attempt: str) -> None:
        """Remove an attempt whose process has ended."""
        self._running.pop(attempt, None)
        self.detached.discard(attempt)

    def fail_all(self, why: str) -> list[Event]:
        """Kill all processes that are not detached, and return the last event of each attempt."""
        for attempt, process in self._running.items():
            if attempt not in self.detached:
                process.signal_group(signal.SIGKILL)
        failed = [LaunchFailed(attempt, why or "the zygote has ended", not why) for attempt in self._requested]
        exited = [Exited(attempt, None, None) for attempt in self._running]
        return [*failed, *exited]

    def remove_all(self) -> None:
        """Remove all attempts. The zygote has ended, so `reap` must wait for it even if a process is detached."""
        self._requested, self._running, self.detached = set(), {}, set()

    def _on_forked(self, message: messages.Forked, descriptors: Descriptors) -> Event:
        if not descriptors:  # The kernel drops a received one if this process has no number left.
            self.request_kill(message.attempt)
            self.send_kills()
            return self._launch_failed(message.attempt, "no file descriptor is left for its pidfd", True)
        self._requested.discard(message.attempt)
        self._running[message.attempt] = process = Process(message.pid, descriptors)
        return Launched(message.attempt, process)

    def _launch_failed(self, attempt: str, why: str, back_pressure: bool) -> LaunchFailed:
        self._requested.discard(attempt)
        self.detached.discard(attempt)
        return LaunchFailed(attempt, why, back_pressure)


class _ZygoteHandle(_ZygoteLink):
    """A zygote that this process has started."""

    def __init__(self, start: messages.Start, stdin: int | None) -> None:
        super().__init__()
        try:
            # Popen without preexec_fn runs no Python between fork and exec: the manager may have threads.
            self._popen = subprocess.Popen(
                [*python_command(), "-c", _START, _ROOT, str(self.theirs.fileno())],
                stdin=subprocess.DEVNULL if stdin is None else stdin,
                pass_fds=(self.theirs.fileno(),),
                start_new_session=True,  # Only the manager handles the terminal's Ctrl-C.
            )
        except BaseException:
            self.channel.close()
            raise
        finally:
            self.theirs.close()
        self.process = Process.open(self._popen.pid)
        self._group = ControlGroup.create()
        with Process.open(os.getpid()) as manager:
            messages.send(self.channel, start, [manager.fileno(), *self._group.descriptors])

    def request_zygote(self, script: Script, link: _ZygoteLink) -> None:
        """Send the other end of a link to a new fork of this zygote. Raises BlockingIOError if the channel is full."""
        with link.theirs:
            messages.send(self.channel, messages.ForkZygote(script), [link.theirs.fileno()])

    def kill_group(self) -> None:
        """Kill all processes of the control group, if there is one."""
        self._group.kill()

    def disconnect(self, *, keeps: bool) -> None:
        """Close the channel: the zygote ends after its last child, and removes its control group if it ``keeps`` it."""
        with contextlib.suppress(OSError):
            if not keeps:
                messages.send(self.channel, messages.Shutdown())
        self.channel.close()

    def reap(self, deadline: float, *, keeps: bool) -> None:
        """Wait for the zygote until ``deadline``, then kill it, unless it ``keeps`` running."""
        if self.process.closed:
            return
        if keeps:
            self._popen.returncode = 0  # Keeps Popen from waiting for it.
        elif self.process.wait(deadline - time.monotonic()) or self.process.signal(signal.SIGKILL):
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._popen.wait(KILL_WAIT_S)
            self._group.kill()
            self._group.remove()
        self._group.close()
        self.process.close()
