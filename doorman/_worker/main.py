"""The main function of a worker process: prove the identity, wait for "go", run the task, report the outcome."""

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

from doorman._worker.connection import REPORT_LINGER_S, ManagerConnection
from doorman._worker.outcome import TaskOutcome, failed, returned
from doorman._worker.pickling import pickle_value, run_initializer, unpickle
from doorman._worker.program import exec_program
from doorman.current import CurrentTask, task_context
from doorman.errors import ProgramNotRun
from doorman.identity import Credential
from doorman.launcher import Order, main_module
from doorman.launcher.launch_messages import interpreter_flags, pack_order, read_order, write_memfd
from doorman.launcher.process_exit import exit_code
from doorman.limits import Limits, apply_limits, limit_memory, memory_limited
from remit import Server
from remit.plugins import find_transport
from remit.transport import register_after_fork

REHEARSALS: Final = 10
"""Number of runs after which the interpreter has specialised the code and no longer writes to the code objects."""
EXIT_NOT_ADMITTED: Final = 75
"""Exit code of a worker that received no "go": EX_TEMPFAIL of sysexits.h."""


class WorkSpec(msgspec.Struct, array_like=True, frozen=True):
    """The payload of an order: the call, its options, and the location of the manager."""

    location: bytes
    """The manager's location, pickled: faster to decode than a URL. Its password is as safe as the attempt's secret."""
    task: str
    name: str
    attempt: int
    call: bytes
    """The pickled callable with its arguments; empty for a command."""
    wrapper: tuple[str, ...] = ()
    """Command that replaces the worker before its proof and starts it again, such as nice."""
    initializer: bytes = b""
    """A pickled callable that is called before the task's code; empty without an initializer."""
    limits: Limits | None = None


# Created once, in the zygote: a new decoder resolves annotations, which takes longer than all other work of a child.
decode_spec: Final = msgspec.msgpack.Decoder(WorkSpec).decode


def prepare(scheme: str) -> Callable[[Order], int]:
    """Run the steps of a child in the zygote, with a server in the same process; return the children's entry function.

    A child copies each page that it writes to. Lazy imports, caches and specialised code are written here, by the
    zygote, and shared by all children. docs/performance.md has the memory of a child and the rate of fresh processes.
    """
    main_module.become_worker()
    find_transport(scheme)
    for _ in range(REHEARSALS):
        with Server("memory://rehearsal", threaded=False) as server:
            server.add_listener("doorman.hello", lambda event: event.sender.emit("go"), pass_event=True)
            server.add_listener("doorman.report", lambda *_: None)
            connection = ManagerConnection(server.location, Credential("rehearsal"))
            unpickle(pickle_value((abs, (1,), {})))
            connection.rehearse(server)
            connection.close(1.0)
    return run_order


def run_order(order: Order) -> int:
    """Run one attempt in this process, from the proof to the report; return the exit code."""
    main_module.become_worker()
    spec = decode_spec(order.payload)
    if spec.wrapper:
        exec_wrapper(order, spec)
    credential = Credential(order.attempt, order.secret, task=spec.task)
    connection = ManagerConnection(pickle.loads(spec.location), credential)
    if order.detach:
        connection.enable_readoption(order.record)
    if not connection.prove():
        connection.close(0.0)
        return EXIT_NOT_ADMITTED
    # A fork of the task's process loses the secret, so that it cannot report in the name of the attempt.
    register_after_fork(credential.drop_secret)
    code = 1
    outcome = initialize(spec, connection, called=not order.command)
    if outcome is None and order.command:
        connection.close()
        limit_memory(spec.limits)
        return run_program(order.command, spec, credential)
    if outcome is None:
        connection.start_readoption()
        outcome, code = run_call(spec, connection)
    if outcome is not None:
        connection.report_outcome(outcome)
    connection.close()
    return code


def initialize(spec: WorkSpec, connection: ManagerConnection, *, called: bool) -> TaskOutcome | None:
    """Apply limits, call the initializer; return an outcome if one fails. ``called`` -- the task is not a command."""
    try:
        if spec.limits is not None:
            apply_limits(spec.limits, called=called)
        if spec.initializer:
            with user_code(spec, connection, called=called):
                run_initializer(spec.initializer)
    except BaseException as error:  # noqa: BLE001 - every failure is reported as the task's outcome
        return failed(error)
    return None


def run_call(spec: WorkSpec, connection: ManagerConnection) -> tuple[TaskOutcome | None, int]:
    """Call the task's function; return the outcome and the exit code. An exit with an error has no outcome."""
    try:
        with user_code(spec, connection):
            fn, args, kwargs = unpickle(spec.call)
            value = fn(*args, **kwargs)
        return returned(value), 0
    except SystemExit as exit_request:
        code = exit_code(exit_request)
        return (None, code) if code else (returned(None), 0)
    except BaseException as error:  # noqa: BLE001 - every failure is reported as the task's outcome
        return failed(error), 1


@contextlib.contextmanager
def user_code(spec: WorkSpec, connection: ManagerConnection, *, called: bool = True) -> Iterator[None]:
    """Run the block as the current task, with limited memory; after the block there is memory for the report."""
    task = CurrentTask(spec.name, spec.attempt, connection.emit, connection.add_listener, connection.report_progress)
    with task_context(task), memory_limited(spec.limits if called else None):
        yield


def exec_wrapper(order: Order, spec: WorkSpec) -> NoReturn:
    """Replace this program by the wrapper, which starts a worker that reads the order from an inherited descriptor."""
    inner = msgspec.structs.replace(spec, wrapper=())
    # Without environment and folder: both are set already, and the wrapper may change them for the worker.
    again = replace(order, payload=msgspec.msgpack.encode(inner), env=None, cwd=None)
    memory = write_memfd(pack_order(again, sys_path=sys.path))
    os.lseek(memory[0], 0, os.SEEK_SET)
    os.set_inheritable(memory[0], True)
    command = (*spec.wrapper, sys.executable, *interpreter_flags(), "-m", "doorman._worker", str(memory[0]))
    try:
        exec_program(command)
    except ProgramNotRun as error:
        print(f"doorman: the wrapper of {spec.name!r}: {error}", file=sys.stderr, flush=True)  # noqa: T201
        os._exit(error.exit_code or 0)


def run_program(command: tuple[str, ...], spec: WorkSpec, credential: Credential) -> int:
    """Replace this program by the task's. If that cannot be run, report why and return the exit code of a shell."""
    try:
        exec_program(command)
    except ProgramNotRun as error:
        print(f"doorman: {error}", file=sys.stderr, flush=True)  # noqa: T201
        # The first connection is closed: a program that runs must not inherit it.
        connection = ManagerConnection(pickle.loads(spec.location), credential)
        connection.report_outcome(failed(error))
        connection.close(REPORT_LINGER_S)
        return error.exit_code or 0


def main() -> int:
    """Read the order of this program from a descriptor or from standard input, and run it."""
    # Imported here: a forked child never needs them.
    from doorman import process
    from doorman.launcher.zygote_process import apply_order, reset_signals, use_line_buffering

    reset_signals()
    use_line_buffering()
    descriptor = int(sys.argv[1]) if len(sys.argv) > 1 else 0
    order = read_order(descriptor)
    if not order.detach:
        with contextlib.suppress(OSError):
            process.die_with_parent(os.getppid())
        _end_with_manager(descriptor)
    with contextlib.suppress(OSError):
        process.become_subreaper()  # As a child of the zygote is: what its descendants leave remains its own.
    apply_order(order)
    os.set_inheritable(descriptor, False)
    return run_order(order)


def _end_with_manager(descriptor: int) -> None:
    """Kill this process group when the manager closes the other end of the order's pipe.

    PR_SET_PDEATHSIG is not enough, because the parent is a wrapper and may outlive the manager.
    """
    if stat.S_ISREG(os.fstat(descriptor).st_mode):
        return  # A memfd of `exec_wrapper`: the zygote kills the whole group.

    def watch() -> None:
        poll = select.poll()
        poll.register(descriptor, 0)  # No event mask: POLLHUP and POLLERR are always reported.
        poll.poll()
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=watch, name="doorman-manager-watch", daemon=True).start()
