"""Worker: the child's side: prove who it is, wait for go, run, report."""

from __future__ import annotations

import contextlib
import os
import pickle
import select
import signal
import stat
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any, Final, NoReturn

import msgspec

from doorman import identity
from doorman.current import CurrentTask, entered
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.journal.homecoming import Homecoming
from doorman.journal.lastwords import leave_outcome
from doorman.launcher import Order
from doorman.launcher.delivery import interpreter_flags, packed, take_order
from doorman.launcher.leaving import exit_code
from doorman.policy.limits import Limits
from doorman.progress import Progress, Reporter, signed
from doorman.result import Outcome, failed, returned
from remit import Client, Event, Location, Server
from remit.errors import RemitError
from remit.plugins import find_transport

__all__ = ["Work", "main", "prepare", "run_order"]

GO_TIMEOUT: Final = 30.0
"""Seconds after which a child that was not told to go ends without having run anything."""
HELLO_AGAIN: Final = 2.0
"""Seconds after which an unanswered hello is said again."""
REPORT_LINGER: Final = 60.0
"""Seconds within which the result must have reached the manager."""
SETTLED: Final = 1.0
"""Seconds that a detached process's line takes to close beyond that."""
REHEARSALS: Final = 10
"""The interpreter writes into code until it has specialised it: what is written here, no child has to write again."""
CHUNK: Final = 256 * 1024
"""Bytes of a result in one event: below what any transport carries."""
NOT_ADMITTED: Final = 75
"""Exit code of a child that was not told to go: a temporary failure, by the convention of sysexits."""
NOT_FOUND: Final = 127
"""Exit code of a command that cannot be run, by the convention of the shells."""


class Work(msgspec.Struct, array_like=True, frozen=True):
    """The payload of an order: what to do and whom to tell."""

    location: bytes
    """The manager's, pickled, which is cheaper to read than a URL; its password travels as the secret does."""
    task: str
    name: str
    attempt: int
    call: bytes
    """The pickled callable with its arguments; empty for a command."""
    wrapper: tuple[str, ...] = ()
    """The command that the worker is to be started with once more, before it proves itself."""
    initializer: bytes = b""
    """A pickled callable to be called before the task's code."""
    limits: Limits | None = None


_read_work: Final = msgspec.msgpack.Decoder(Work).decode
"""Made once, in the zygote: to make one reads annotations, which takes longer than all else that a child does."""


def prepare(scheme: str) -> Callable[[Order], int]:
    """Do once, in the zygote, what each child would have to do; return the entry of the children."""
    find_transport(scheme)
    for _ in range(REHEARSALS):
        rehearse()
    return run_order


def rehearse() -> None:
    """Run a child's steps once: memory that the zygote has written to need not be copied by each child."""
    credential = Credential("rehearsal")
    with Server("memory://rehearsal", threaded=False) as server:
        server.add_listener("doorman.hello", lambda event: event.sender.emit("go"), pass_event=True)
        line = Line(server.location, credential)
        line.rehearse(server)
        line.close(1.0)


def run_order(order: Order) -> int:
    """Be the process of one attempt; return its exit code."""
    work = _read_work(order.payload)
    if work.wrapper:
        wrap(order, work)
    credential = Credential(order.attempt, order.secret, task=work.task)
    line = Line(pickle.loads(work.location), credential)
    if order.detach:
        line.detach(order.record)
    if not line.prove():
        line.close(0.0)
        return NOT_ADMITTED
    os.register_at_fork(after_in_child=credential.forget)
    code = 1
    outcome = begin(work, line, called=not order.command)
    if outcome is None and order.command:
        line.close(REPORT_LINGER)
        if work.limits is not None:
            work.limits.confine()
        become(order.command)
    if outcome is None:
        line.begin()
        outcome, code = run(work, line)
    if outcome is not None:
        line.report(outcome)
    line.close(REPORT_LINGER)
    return code


def begin(work: Work, line: Line, *, called: bool) -> Outcome | None:
    """Limit this process and call the initializer; return how the task ends if it must not begin."""
    try:
        if work.limits is not None:
            work.limits.apply(called=called)
        if work.initializer:
            with at_work(work, line, called=called):
                pickle.loads(work.initializer)()
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
        return failed(error)
    return None


def run(work: Work, line: Line) -> tuple[Outcome | None, int]:
    """Call what the task calls; return its outcome and the exit code. An exit with an error has no outcome."""
    try:
        with at_work(work, line):
            fn, args, kwargs = pickle.loads(work.call)
            value = fn(*args, **kwargs)
        return returned(value), 0
    except SystemExit as leaving:
        code = exit_code(leaving)
        return (None, code) if code else (returned(None), 0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
        return failed(error), 1


@contextlib.contextmanager
def at_work(work: Work, line: Line, *, called: bool = True) -> Iterator[None]:
    """A block of the user's code, with its memory limited: what comes after it is to have room to tell how it ended."""
    confined = work.limits.confined() if work.limits is not None and called else contextlib.nullcontext()
    with entered(CurrentTask(work.name, work.attempt, line.emit, line.listen, line.progress)), confined:
        yield


def wrap(order: Order, work: Work) -> NoReturn:
    """Turn into the wrapper, which starts a worker that takes the same order from an inherited descriptor."""
    inner = msgspec.structs.replace(work, wrapper=())
    # Without environment and folder, which are in place already: what the wrapper makes of them is to stay.
    again = replace(order, payload=msgspec.msgpack.encode(inner), env=None, cwd=None)
    data = packed(again, sys_path=sys.path)
    descriptor = os.memfd_create("order", 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    become((*work.wrapper, sys.executable, *interpreter_flags(), "-m", "doorman.launcher.enter", str(descriptor)))


def become(command: tuple[str, ...]) -> NoReturn:
    """Turn into the program; pid and inode stay. A program that cannot be run is told on standard error."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"doorman: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(NOT_FOUND)


class Line:
    """The worker's connection to its manager."""

    def __init__(self, location: Location, credential: Credential) -> None:
        self._credential = credential
        self._answer: str | None = None
        self._owner = os.getpid()
        self._record: str | None = None
        self._homecoming: Homecoming | None = None
        self._reporter: Reporter | None = None
        self._reports = 0
        self._client = Client(location, threaded=False, linger=REPORT_LINGER)
        self._client.add_listener("doorman.go", self._told, pass_event=True)
        self._client.add_listener("doorman.die", self._told, pass_event=True)

    def detach(self, record: str | None) -> None:
        """Outlive the manager, and be found by the next one; what it would have to be told is left at ``record``."""
        self._record = record
        self._homecoming = Homecoming(self._client, self._credential)

    def prove(self) -> bool:
        """Say hello until answered; True if told to go."""
        deadline = time.monotonic() + GO_TIMEOUT
        hello = identity.hello(self._credential)
        while self._answer is None and (left := deadline - time.monotonic()) > 0:
            self._client.emit("doorman.hello", hello)
            again = time.monotonic() + min(HELLO_AGAIN, left)
            while self._answer is None and (left := again - time.monotonic()) > 0:
                self._client.tick(left)
        return self._answer == "go"

    def begin(self) -> None:
        """The task's own code begins."""
        if self._homecoming is not None:
            self._homecoming.begin()

    def emit(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Emit an event of the task's own; from the first on a thread sees that they leave while the task computes."""
        if os.getpid() == self._owner:
            self._client.start()
        self._client.emit(name, *args, **kwargs)

    def listen(self, name: str, listener: Callable[..., Any]) -> None:
        """Hear what the manager emits to this task, in a thread."""
        if os.getpid() == self._owner:
            self._client.add_listener(name, listener)
            self._client.start()

    def progress(self, progress: Progress) -> None:
        """Tell how far the task has come, or let it wait for what is newer."""
        if os.getpid() != self._owner:
            raise NotInTask("a fork of the task's process has no progress of its own: report from the task itself")
        if self._reporter is None:
            self._reporter = Reporter(self._send_progress)
        self._reporter.report(progress)

    def _send_progress(self, progress: Progress) -> None:
        if self._client.crowded:
            return  # Nobody hears it now, and the task must not wait for that.
        self._reports += 1
        self.emit("doorman.progress", signed(self._credential, self._reports, progress), {})

    def report(self, outcome: Outcome) -> None:
        """Send the outcome, in signed parts, behind the last progress."""
        if self._record is not None:
            try:
                leave_outcome(self._record, outcome, self._credential)
            except OSError as error:
                print(f"doorman: the result is left nowhere: {error}", file=sys.stderr)  # noqa: T201
        if self._reporter is not None:
            self._reporter.flush()
        data = outcome.encode()
        parts = max(1, -(-len(data) // CHUNK))
        for number in range(parts):
            part = data[number * CHUNK : (number + 1) * CHUNK]
            signature = self._credential.sign(label(number, parts) + part)
            self._client.emit("doorman.result", self._credential.attempt, number, parts, part, signature)

    def close(self, linger: float) -> None:
        """Wait until the manager has confirmed everything, then end; what could not be told is told on stderr."""
        try:
            if self._homecoming is not None:
                self._client.flush(linger)  # Not closed meanwhile: a new manager may have questions.
            self._client.close(min(linger, SETTLED) if self._homecoming is not None else linger)
        except RemitError as lost:
            if linger:
                print(f"doorman: the manager was not told: {lost}", file=sys.stderr)  # noqa: T201

    def rehearse(self, server: Server) -> None:
        """Say hello to a server in this very process, hear its answer, and report; all is confirmed then."""
        self._client.emit("doorman.hello", identity.hello(self._credential))
        self._exchange(server)
        self.report(returned(None))
        self._exchange(server)

    def _exchange(self, server: Server) -> None:
        for _ in range(3):  # A frame goes, its answer comes, and is acknowledged.
            self._client.tick()
            server.tick()

    def _told(self, event: Event) -> None:
        """Listener: the manager's word, if it is the manager's."""
        attempt, signature = event.args
        word = event.name.removeprefix("doorman.")
        if attempt == self._credential.attempt and self._credential.check(word.encode(), signature):
            self._answer = word


def label(number: int, parts: int) -> bytes:
    """Return what is signed along with a part of a result, so that parts cannot be exchanged."""
    return number.to_bytes(4, "big") + parts.to_bytes(4, "big")


def main() -> int:
    """Run as a program of its own: take the order from a descriptor, or from standard input, and obey it."""
    from doorman import prctl
    from doorman.launcher.warmup import write_by_line

    write_by_line()
    descriptor = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    order = take_order(descriptor)
    if not order.detach:
        with contextlib.suppress(OSError):
            prctl.die_with_parent(os.getppid())
        _end_with_manager(descriptor)
    if order.env is not None:
        os.environ.clear()
        os.environ.update(order.env)
    if order.cwd is not None:
        os.chdir(order.cwd)
    os.set_inheritable(descriptor, False)
    return run_order(order)


def _end_with_manager(descriptor: int) -> None:
    """Watch the descriptor of the order, whose end of file is the manager's: a wrapper may outlive it."""
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return  # A wrapper of the zygote's: it ends the whole group.

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)
        poll.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="doorman-manager-watch", daemon=True).start()
