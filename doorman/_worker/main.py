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
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Final, NoReturn

import msgspec

from doorman._worker.connection import ManagerConnection
from doorman._worker.outcome import Outcome, failed, returned
from doorman.current import CurrentTask, task_context
from doorman.identity import Credential
from doorman.launcher import Order
from doorman.launcher.messages import interpreter_flags, pack_order, read_order
from doorman.launcher.process_exit import exit_code
from doorman.limits import Limits
from remit import Server
from remit.plugins import find_transport
from remit.transport import register_after_fork

__all__ = ["WorkSpec", "main", "prepare", "run_order"]


REHEARSALS: Final = 10
"""The interpreter writes into code until it has specialised it: what is written here, no child has to write again."""
EXIT_NOT_ADMITTED: Final = 75
"""Exit code of a child that was not told to go: a temporary failure, by the convention of sysexits."""
EXIT_NOT_FOUND: Final = 127
"""Exit code of a command that cannot be run, by the convention of the shells."""


class WorkSpec(msgspec.Struct, array_like=True, frozen=True):
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


_read_work: Final = msgspec.msgpack.Decoder(WorkSpec).decode
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
        line = ManagerConnection(server.location, credential)
        line.rehearse(server)
        line.close(1.0)


def run_order(order: Order) -> int:
    """Be the process of one attempt; return its exit code."""
    work = _read_work(order.payload)
    if work.wrapper:
        exec_wrapper(order, work)
    credential = Credential(order.attempt, order.secret, task=work.task)
    line = ManagerConnection(pickle.loads(work.location), credential)
    if order.detach:
        line.enable_readoption(order.record)
    if not line.prove():
        line.close(0.0)
        return EXIT_NOT_ADMITTED
    register_after_fork(credential.drop_secret)
    code = 1
    outcome = initialize(work, line, called=not order.command)
    if outcome is None and order.command:
        line.close()
        if work.limits is not None:
            work.limits.limit_memory()
        exec_command(order.command)
    if outcome is None:
        line.start_readoption()
        outcome, code = run_call(work, line)
    if outcome is not None:
        line.report_outcome(outcome)
    line.close()
    return code


def initialize(work: WorkSpec, line: ManagerConnection, *, called: bool) -> Outcome | None:
    """Limit this process and call the initializer; return how the task ends if it must not begin."""
    try:
        if work.limits is not None:
            work.limits.apply(called=called)
        if work.initializer:
            with user_code(work, line, called=called):
                pickle.loads(work.initializer)()
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
        return failed(error)
    return None


def run_call(work: WorkSpec, line: ManagerConnection) -> tuple[Outcome | None, int]:
    """Call what the task calls; return its outcome and the exit code. An exit with an error has no outcome."""
    try:
        with user_code(work, line):
            fn, args, kwargs = pickle.loads(work.call)
            value = fn(*args, **kwargs)
        return returned(value), 0
    except SystemExit as leaving:
        code = exit_code(leaving)
        return (None, code) if code else (returned(None), 0)
    except BaseException as error:  # noqa: BLE001 - whatever it is, whoever waits for the result has to know
        return failed(error), 1


@contextlib.contextmanager
def user_code(work: WorkSpec, line: ManagerConnection, *, called: bool = True) -> Iterator[None]:
    """A block of the user's code, with its memory limited: what comes after it is to have room to tell how it ended."""
    confined = work.limits.memory_limited() if work.limits is not None and called else contextlib.nullcontext()
    with (
        task_context(CurrentTask(work.name, work.attempt, line.emit, line.add_listener, line.report_progress)),
        confined,
    ):
        yield


def exec_wrapper(order: Order, work: WorkSpec) -> NoReturn:
    """Turn into the wrapper, which starts a worker that takes the same order from an inherited descriptor."""
    inner = msgspec.structs.replace(work, wrapper=())
    # Without environment and folder, which are in place already: what the wrapper makes of them is to stay.
    again = replace(order, payload=msgspec.msgpack.encode(inner), env=None, cwd=None)
    data = pack_order(again, sys_path=sys.path)
    descriptor = os.memfd_create("order", 0)
    with os.fdopen(os.dup(descriptor), "wb") as file:
        file.write(data)
    os.lseek(descriptor, 0, os.SEEK_SET)
    exec_command((*work.wrapper, sys.executable, *interpreter_flags(), "-m", "doorman.launcher.enter", str(descriptor)))


def exec_command(command: tuple[str, ...]) -> NoReturn:
    """Turn into the program; pid and inode stay. A program that cannot be run is told on standard error."""
    try:
        os.execvp(command[0], command)
    except OSError as error:
        print(f"doorman: cannot run {command[0]}: {error.strerror}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(EXIT_NOT_FOUND)


def main() -> int:
    """Run as a program of its own: take the order from a descriptor, or from standard input, and obey it."""
    from doorman import process as prctl
    from doorman.launcher.zygote_process import use_line_buffering

    use_line_buffering()
    descriptor = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    order = read_order(descriptor)
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
