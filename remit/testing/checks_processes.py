"""Checks that need another process: links after a fork, and clients elsewhere."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any, Final

import cloudpickle

from remit.errors import ForkedLinkError
from remit.location import Location
from remit.testing.checks_lifecycle import expect_refused
from remit.testing.harness import Harness, Relay
from remit.testing.runner import check
from remit.testing.trial import LinkEnd, NotApplicable, Trial, Violation, expect, expect_frames
from remit.transport import SERVER, Frame

GREETING: Final = b"from a forked child"
LINGER_S: Final = 1.0
COMMAND: Final = ("-W", "ignore", "-c", f"from {__name__} import main; main()")
"""Arguments of Python in the other process. Its last line on stderr is the error, so warnings must not follow it."""


@check(7)
def a_forked_child_is_refused(trial: Trial) -> None:
    """A forked child gets ForkedLinkError, may close, and does not affect the parent's links."""
    _run_forking(trial, _misuse_inherited_links)


def _misuse_inherited_links(trial: Trial) -> None:
    pair = trial.open_pair()

    def misuse() -> None:
        expect_refused(ForkedLinkError, pair.server, pair.peer)
        expect_refused(ForkedLinkError, pair.client, SERVER)
        for end in pair.ends:
            end.link.close(LINGER_S)
            end.link.close(LINGER_S)

    run_in_fork(trial, misuse)
    trial.send_both_ways(pair, b"undisturbed")
    for end in pair.ends:
        trial.expect_received(end, [b"undisturbed"], *pair.ends)
        expect(not end.losses, f"calls in a forked child were followed by {end.losses} in the parent")


@check(7, capability="forks")
def a_forked_child_opens_its_own(trial: Trial) -> None:
    """A forked child of a process that used the transport may open its own links."""
    _run_forking(trial, _open_links_in_child)


def _open_links_in_child(trial: Trial) -> None:
    pair = trial.open_pair()
    crosses = trial.capabilities.crosses_processes

    def open_another() -> None:
        with Trial(trial.harness, trial.seconds_left) as own:
            if own.location != pair.location:
                mine = own.open_pair()
                own.send(mine.client, SERVER, b"in a child", *mine.ends)
                own.wait_until(lambda: mine.server.frames, "a frame arrives in a forked child", *mine.ends)
            if crosses:
                client = own.connect(pair.location)
                own.wait_until(lambda: client.ups, "a client in a forked child reports Up", client)
                own.send(client, SERVER, GREETING)
                own.close_end(client, LINGER_S)

    run_in_fork(trial, open_another, *pair.ends)
    if crosses:
        trial.wait_until(lambda: pair.server.frames, "a frame arrives from a forked child", *pair.ends)
        expect_frames(pair.server.frames, [GREETING])


@check(4, capability="crosses_processes")
def another_process_is_reached(trial: Trial) -> None:
    """A client in another process reaches the server."""
    server = trial.bind()
    with run_in_process(trial, call, server.link.location) as other:

        def arrived() -> bool:
            return bool(server.frames) or other.process.poll() is not None

        trial.wait_until(arrived, "a frame arrives from another process", server)
        expect(server.frames, other.last_error_line())
        trial.send(server, next(each.peer for each in server.arrivals if isinstance(each, Frame)), server.frames[0])
        wait_for_exit(trial, other, server)
    attested = [up.credentials.pid for up in server.ups if up.credentials is not None]
    reported = [int(data) for data in server.frames]
    expect(attested in ([], reported), f"the peer is process {reported}, and its credentials are of {attested}")


@check(4, capability="crosses_hosts")
def another_host_is_reached(trial: Trial) -> None:
    """A client reaches the server through a relay, by host and port alone."""
    server = trial.bind()
    place = server.link.location
    expect(place.host and place.port, f"{place} has no host and port, which `crosses_hosts` requires")
    with contextlib.closing(Relay(place)) as relay:
        trial.exchange_greetings(server, trial.connect(relay.location))
        expect(relay.passed, "the client did not connect through the host and port of its location")


def call(trial: Trial, place: Location) -> None:
    """In the other process: send the pid to the server, and expect the same frame as a reply."""
    client = trial.connect(place)
    trial.wait_until(lambda: client.ups, "a client in another process reports Up", client)
    trial.send(client, SERVER, b"%d" % os.getpid())
    trial.wait_until(lambda: client.frames, "the reply arrives in the other process", client)
    expect_frames(client.frames, [b"%d" % os.getpid()])
    trial.close_end(client, LINGER_S)


class OtherProcess:
    """Another process that runs a part of a check."""

    def __init__(self, process: subprocess.Popen[bytes], errors: IO[bytes]) -> None:
        self.process = process
        self._errors = errors

    def last_error_line(self) -> str:
        """Return the last line that the process wrote to stderr."""
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").splitlines()
        last = next((line.strip() for line in reversed(lines) if line.strip()), "the other process failed silently")
        return last.removeprefix(f"{Violation.__module__}.{Violation.__qualname__}: ")


@contextlib.contextmanager
def run_in_process(trial: Trial, work: Callable[..., None], *arguments: object) -> Iterator[OtherProcess]:
    """Run ``work(trial, *arguments)`` with its own Trial in another process, which is killed when the block ends."""
    # Files and not pipes: a full pipe would block the other process while this thread polls links.
    with tempfile.TemporaryFile() as given, tempfile.TemporaryFile() as errors:
        # Not all the time left: the other process must still be able to report its error.
        given.write(_pickled(trial.harness, (trial.harness, trial.seconds_left * 0.8, work, arguments)))
        given.seek(0)
        process = subprocess.Popen(
            [sys.executable, *COMMAND],
            env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
            stdin=given,
            stdout=subprocess.DEVNULL,
            stderr=errors,
        )
        try:
            yield OtherProcess(process, errors)
        finally:
            process.kill()
            process.wait()


def _pickled(harness: Harness, order: tuple[Any, ...]) -> bytes:
    """Pickle an order. A harness from a module that another process cannot import is pickled by value."""
    module = sys.modules[type(harness).__module__]
    name = Path(*module.__name__.split("."))
    # Not find_spec(), which also finds loaded modules that are on no path, such as test files.
    places = [(folder / name.with_suffix(".py"), folder / name / "__init__.py") for folder in map(Path, sys.path)]
    importable = module.__name__ == "__main__" or any(Path(module.__file__ or "") in files for files in places)
    with contextlib.ExitStack() as stack:
        if not importable:
            cloudpickle.register_pickle_by_value(module)
            stack.callback(cloudpickle.unregister_pickle_by_value, module)
        return bytes(cloudpickle.dumps(order))


def main() -> None:
    """Run the pickled order from standard input."""
    # Blocked, so that sigtimedwait() in run_in_fork() receives it.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGCHLD,))
    harness, deadline, work, arguments = cloudpickle.load(sys.stdin.buffer)
    with Trial(harness, deadline) as trial:
        work(trial, *arguments)


def wait_for_exit(trial: Trial, other: OtherProcess, *ends: LinkEnd) -> None:
    """Poll the ends until the other process exits. Raises Violation unless its exit code is 0."""

    def over() -> bool:
        if not ends:
            with contextlib.suppress(subprocess.TimeoutExpired):
                other.process.wait(trial.seconds_left)
        return other.process.poll() is not None

    trial.wait_until(over, "the other process ends", *ends)
    code = other.process.returncode
    expect(code == 0, other.last_error_line() if code > 0 else f"signal {-code} ended the other process")


def run_in_fork(trial: Trial, work: Callable[[], None], *ends: LinkEnd) -> None:
    """Fork the other process, and poll the ends until its child has run ``work``."""
    pid = os.fork()
    if not pid:
        # The default action of SIGALRM ends a child that blocks in a call of the transport, in Python code or in C.
        signal.alarm(max(1, round(trial.seconds_left)))
        code = 1
        try:
            work()
            code = 0
        finally:
            if code:
                traceback.print_exc()
                sys.stderr.flush()
            # os._exit: the exit handlers and buffers inherited from the parent must not run or be flushed here.
            os._exit(code)
    status = 0

    def over() -> bool:
        nonlocal status
        found, status = os.waitpid(pid, os.WNOHANG)
        if not found and not ends:
            # Not a wait on a link, which would change the state that parent and child share.
            signal.sigtimedwait((signal.SIGCHLD,), 0.005)
        return bool(found)

    trial.wait_until(over, "the forked child ends", *ends)
    code = os.waitstatus_to_exitcode(status)
    if code > 0:
        raise SystemExit(code)  # The child has printed its error, which must stay the last line of stderr.
    expect(code == 0, f"signal {-code} ended the forked child")


def _run_forking(trial: Trial, work: Callable[[Trial], None]) -> None:
    # Not in this process, whose other threads must not be forked.
    if not hasattr(os, "fork"):
        raise NotApplicable("this system has no fork")
    with run_in_process(trial, work) as other:
        wait_for_exit(trial, other)
