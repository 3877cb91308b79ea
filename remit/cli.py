"""The ``remit`` command: transports, listen, emit, request, broker and conformance."""

# Modules that only one command needs are imported in its function: `remit --help` should stay fast.
from __future__ import annotations

import argparse
import contextlib
import json
import signal
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from remit import __version__
from remit.command_streams import EXIT_WRITE_ERROR, discard_output, guarded_streams
from remit.errors import RemitError
from remit.options import argument, read_count, read_seconds

if TYPE_CHECKING:
    from remit.event import Event

__all__ = ["main"]

FAILED: Final = 2  # As argparse after a wrong command line.
INTERRUPTED: Final = 128 + signal.SIGINT  # As a shell reports a program that the signal ended.
BROKEN_PIPE: Final = 128 + signal.SIGPIPE
LONGEST_WAIT_S: Final = 60.0  # An arrival or a signal ends a wait of `remit listen` earlier.
WHERE: Final = "a URL, host:port, or a name from the configuration"
TABLE_BEGINS: Final = "<!-- capabilities: begin -->"
TABLE_ENDS: Final = "<!-- capabilities: end -->"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 if a check failed or output could not be written; 2 after an error, printed as one line; 130 after an
    interrupt; 141 if the reader of the output has gone.
    """
    with guarded_streams("remit") as streams:
        code = _run(arguments)
    if arguments is None:
        streams.discard_lost()
    return code or (EXIT_WRITE_ERROR if streams.failed else 0)


def _run(arguments: Sequence[str] | None) -> int:
    try:
        given = _parser().parse_args(arguments)
        code = int(given.run(given))
        sys.stdout.flush()  # Here, where an error can be handled: at interpreter exit it would print a traceback.
        return code
    except RemitError as error:
        return _fail(error)
    except BrokenPipeError:
        discard_output(sys.stdout)
        discard_output(sys.stderr)
        return BROKEN_PIPE
    except KeyboardInterrupt:
        return INTERRUPTED


def _fail(error: object) -> int:
    print(f"remit: {' '.join(str(error).split())}", file=sys.stderr)
    return FAILED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="remit", description="A distributed event emitter.")
    parser.add_argument("--version", action="version", version=f"remit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    def command(run: Callable[[argparse.Namespace], int], purpose: str) -> argparse.ArgumentParser:
        added = commands.add_parser(run.__name__.removeprefix("_"), help=purpose)
        added.set_defaults(run=run)
        return added

    count = argument(read_count)
    seconds = argument(read_seconds)
    above_zero = argument(read_seconds, above_zero=True)

    command(_transports, "list the installed transports and the state of each")

    listen = command(_listen, "open a server and print its events as lines of JSON")
    listen.add_argument("location", metavar="LOCATION", help=WHERE)
    listen.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names to print, such as 'job.*'")
    listen.add_argument("-n", "--count", type=count, help="exit after this number of events")

    emit = command(_emit, "emit one event, and return once it has been handled")
    emit.add_argument("location", metavar="LOCATION", help=WHERE)
    emit.add_argument("name", metavar="NAME", help="name of the event")
    emit.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="arguments of the event, each as JSON")
    emit.add_argument("--linger", type=seconds, help="seconds to wait until it has been handled (5)")

    request = command(_request, "send a request, and print the reply as a line of JSON")
    request.add_argument("location", metavar="LOCATION", help=WHERE)
    request.add_argument("name", metavar="NAME", help="name of the request")
    request.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="arguments, each as JSON")
    request.add_argument("--timeout", type=seconds, help="seconds to wait for the reply (30)")

    broker = command(_broker, "distribute the requests of clients to workers, until interrupted")
    broker.add_argument("location", metavar="LOCATION", nargs="?", help=WHERE)
    broker.add_argument("--lease", type=above_zero, default=10.0, help="seconds until a silent worker is dead (10)")
    broker.add_argument("--attempts", type=count, default=3, help="workers that may die of one job (3)")

    conformance = command(_conformance, "check a transport against the contract")
    what = conformance.add_mutually_exclusive_group(required=True)
    fresh = f"{WHERE}; each check derives a fresh one from it"
    what.add_argument("location", metavar="LOCATION", nargs="?", help=fresh)
    what.add_argument("--table", action="store_true", help="print the capabilities of the installed transports")
    conformance.add_argument("--into", metavar="FILE", help=f"with --table: write it into FILE, after {TABLE_BEGINS}")
    conformance.add_argument("--json", action="store_true", help="print the outcomes as JSON, after the last check")
    conformance.add_argument("--deadline", type=above_zero, help="seconds for each check (20)")
    return parser


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        quoted = f"'{json.dumps(text)}'"
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON; for a text write {quoted}") from None


@contextlib.contextmanager
def _stopped_by_signals(stop: Callable[[], None]) -> Iterator[list[int]]:
    """Call ``stop`` on SIGINT and SIGTERM, until the block ends. Yields the list of the received signals."""
    received: list[int] = []

    def handle(number: int, _frame: object) -> None:
        received.append(number)
        stop()

    before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _transports(given: argparse.Namespace) -> int:
    from remit.plugins import find_transport, installed_transports

    rows = [("SCHEME", "DISTRIBUTION", "VERSION", "STATE")]
    for claim in installed_transports():
        state = claim.error or "ready"
        try:
            if not claim.error:
                find_transport(claim.scheme)
        except RemitError as error:
            state = f"broken: {' '.join(str(error).split())}"
        rows.append((claim.scheme, claim.distribution or "(this process)", claim.version or "-", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    # The last column is not padded: the text of an error may be long.
    for *cells, last in rows:
        print("  ".join((*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), last)))
    return 0


def _listen(given: argparse.Namespace) -> int:
    from remit.server import Server
    from remit.transport import Waker

    with contextlib.closing(Waker()) as waker:
        printer = _Printer(given.count, waker.wake)
        with Server(given.location, on_error=printer.report) as server, _stopped_by_signals(printer.stop) as received:
            server.add_listener(given.pattern, printer.show, pass_event=True)
            print(f"listening on {server.location}", file=sys.stderr, flush=True)
            while not printer.stopped:
                # At most as many as will be printed: a dispatched event is acknowledged to its sender.
                if not server.tick(limit=printer.left):
                    server.wait(LONGEST_WAIT_S, waker)
    return INTERRUPTED if signal.SIGINT in received else printer.code


class _Printer:
    """Prints events as lines of JSON until ``count`` events are printed or `stop` is called."""

    def __init__(self, count: int | None, wake: Callable[[], None]) -> None:
        self.left = count
        self.stopped = False
        self.code = 0
        self._wake = wake

    def show(self, event: Event) -> None:
        import msgspec

        line: dict[str, Any] = {"name": event.name, "args": event.args}
        more = {"kwargs": event.kwargs, "headers": event.headers, "sender": event.sender and event.sender.id}
        line |= {key: value for key, value in more.items() if value}
        print(msgspec.json.encode(line).decode(), flush=True)
        if self.left is not None:
            self.left -= 1
            self.stopped = self.stopped or self.left == 0

    def report(self, event: Event, error: Exception) -> None:
        """Report an event that could not be printed, or stop if the reader of the output has gone."""
        if isinstance(error, BrokenPipeError):
            discard_output(sys.stdout)
            self.stop()
        else:
            self.code = _fail(f"cannot print {event.name!r}: {error}")

    def stop(self) -> None:
        """End the command. Safe in a signal handler."""
        self.stopped = True
        self._wake()


def _emit(given: argparse.Namespace) -> int:
    from remit.client import Client

    with Client(given.location, linger=given.linger) as client:
        client.emit(given.name, *given.arguments)
    return 0


def _request(given: argparse.Namespace) -> int:
    import msgspec

    from remit.client import Client

    with Client(given.location) as client:
        reply = client.request(given.name, *given.arguments, timeout=given.timeout)
    print(msgspec.json.encode(reply).decode())
    return 0


def _broker(given: argparse.Namespace) -> int:
    from remit.broker import Broker

    with Broker(given.location, lease=given.lease, max_attempts=given.attempts) as broker:
        with _stopped_by_signals(broker.stop) as received:
            print(f"broker on {broker.location}", file=sys.stderr, flush=True)
            broker.run()
        print(" ".join(f"{name}={count}" for name, count in broker.stats().items()), file=sys.stderr)
    return INTERRUPTED if signal.SIGINT in received else 0


def _conformance(given: argparse.Namespace) -> int:
    from remit.config import resolve
    from remit.testing import Outcome, Verdict, report
    from remit.testing.harness import DEADLINE_S

    if given.table:
        return _write_table(report.capability_table(), given.into)
    location = resolve(given.location)
    outcomes: list[Outcome] = []
    for outcome in report.run_checks(location, deadline=given.deadline or DEADLINE_S):
        outcomes.append(outcome)
        if not given.json:
            print(report.outcome_lines(outcome), flush=True)
    print(report.json_report(location, outcomes) if given.json else report.summary(outcomes))
    return int(any(outcome.verdict is Verdict.FAILED for outcome in outcomes))


def _write_table(table: str, into: str | None) -> int:
    if into is None:
        print(table)
        return 0
    page = Path(into)
    try:
        text = page.read_text()
    except OSError as error:
        return _fail(f"cannot read {into}: {error.strerror}; name a page that exists")
    before, begins, rest = text.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not ends:
        return _fail(f"{into} has no {TABLE_BEGINS} followed by {TABLE_ENDS}; write both into it")
    page.write_text(f"{before}{begins}\n\n{table}\n\n{ends}{after}")
    return 0
