"""Command line: `remit transports`, `listen`, `emit`, `request`, `broker`, `conformance`: Remit without a program."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Any, Final

from remit import __version__
from remit.errors import RemitError
from remit.transport import Waker

if TYPE_CHECKING:
    from remit.event import Event

__all__ = ["main"]

FAILED: Final = 2
"""Exit code when Remit refused; argparse uses the same for a wrong command line."""
INTERRUPTED: Final = 128 + signal.SIGINT
TABLE_BEGINS, TABLE_ENDS = "<!-- capabilities: begin -->", "<!-- capabilities: end -->"
LOOK: Final = 60.0
"""Seconds of one wait at the most; what arrives, and a signal, end it earlier."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 when a transport did not pass; 2 after an error, told in one line; 130 when interrupted.
    """
    given = _parser().parse_args(arguments)
    try:
        return int(given.run(given))
    except RemitError as error:
        print(f"remit: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="remit", description="A distributed event emitter.")
    parser.add_argument("--version", action="version", version=f"remit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    where = "a URL, host:port, or a name from the configuration"

    transports = commands.add_parser("transports", help="list the installed transports and what keeps any from use")
    transports.set_defaults(run=_transports)

    listen = commands.add_parser("listen", help="open a server and print its events as lines of JSON")
    listen.add_argument("location", metavar="LOCATION", help=where)
    listen.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names to print, such as 'job.*'")
    listen.add_argument("-n", "--count", type=_positive, help="end after so many events")
    listen.set_defaults(run=_listen)

    emit = commands.add_parser("emit", help="emit one event, and return once it has been handled")
    emit.add_argument("location", metavar="LOCATION", help=where)
    emit.add_argument("name", metavar="NAME", help="the event's name")
    emit.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="the event's arguments, each as JSON")
    emit.add_argument("--linger", type=_seconds, help="seconds to wait for its being handled (5)")
    emit.set_defaults(run=_emit)

    request = commands.add_parser("request", help="ask, and print the answer as a line of JSON")
    request.add_argument("location", metavar="LOCATION", help=where)
    request.add_argument("name", metavar="NAME", help="what is asked for")
    request.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="the arguments, each as JSON")
    request.add_argument("--timeout", type=_seconds, help="seconds to wait for the answer (30)")
    request.set_defaults(run=_request)

    broker = commands.add_parser("broker", help="give what clients ask to workers, until interrupted")
    broker.add_argument("location", metavar="LOCATION", nargs="?", help=where)
    broker.add_argument("--lease", type=_above_zero, default=10.0, help="seconds until a silent worker is dead (10)")
    broker.add_argument("--attempts", type=_positive, default=3, help="workers that may die of one job (3)")
    broker.set_defaults(run=_broker)

    conformance = commands.add_parser("conformance", help="put a transport to the contract's checks")
    what = conformance.add_mutually_exclusive_group(required=True)
    what.add_argument("location", metavar="LOCATION", nargs="?", help=f"{where}; fresh ones are made of it")
    what.add_argument("--table", action="store_true", help="print what the installed transports declare, as Markdown")
    conformance.add_argument("--into", metavar="FILE", help=f"with --table: write it there, after {TABLE_BEGINS}")
    conformance.add_argument("--json", action="store_true", help="print the outcomes as JSON once all are known")
    conformance.add_argument("--deadline", type=_above_zero, help="seconds for each check (20)")
    conformance.set_defaults(run=_conformance)
    return parser


# -- commands --------------------------------------------------------------------------------------------------


def _transports(given: argparse.Namespace) -> int:
    from remit.plugins import installed_transports

    rows = [("SCHEME", "DISTRIBUTION", "VERSION", "STATE")]
    for claim in installed_transports():
        state = claim.error or _state(claim.scheme)
        rows.append((claim.scheme, claim.distribution or "(this process)", claim.version or "-", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, state in rows:
        print("  ".join((*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), state)))
    return 0


def _state(scheme: str) -> str:
    """Load one transport, which disturbs no other, and say what came of it."""
    from remit.plugins import find_transport

    try:
        find_transport(scheme)
    except RemitError as error:
        return f"broken: {' '.join(str(error).split())}"
    return "ready"


def _listen(given: argparse.Namespace) -> int:
    from remit.server import Server

    printer = _Printer(given.count)
    with closing(printer.waker), Server(given.location, on_error=printer.failed) as server, _ending(printer):
        server.add_listener(given.pattern, printer.show, pass_event=True)
        print(f"listening on {server.location}", file=sys.stderr, flush=True)
        while not printer.done:
            # No more than will be printed: an event that was dispatched is confirmed to whoever emitted it.
            if not server.tick(limit=printer.left):
                server.wait(LOOK, printer.waker)
    return printer.code


def _emit(given: argparse.Namespace) -> int:
    from remit.client import Client

    with Client(given.location, linger=given.linger) as client:
        client.emit(given.name, *given.arguments)
    return 0


def _request(given: argparse.Namespace) -> int:
    import msgspec

    from remit.client import Client

    with Client(given.location) as client:
        answer = client.request(given.name, *given.arguments, timeout=given.timeout)
    print(msgspec.json.encode(answer).decode())
    return 0


def _broker(given: argparse.Namespace) -> int:
    from remit.broker import Broker

    with Broker(given.location, lease=given.lease, max_attempts=given.attempts) as broker:
        before = {number: signal.signal(number, lambda *_: broker.stop()) for number in (signal.SIGINT, signal.SIGTERM)}
        print(f"broker on {broker.location}", file=sys.stderr, flush=True)
        try:
            broker.run()
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
        print(" ".join(f"{name}={count}" for name, count in broker.stats().items()), file=sys.stderr)
    return 0


def _conformance(given: argparse.Namespace) -> int:
    """Exit code 1 when a check failed."""
    from remit.config import resolve
    from remit.testing import report
    from remit.testing.check import Outcome, Verdict
    from remit.testing.harness import DEADLINE

    if given.table:
        return _table(report.capability_table(), given.into)
    location = resolve(given.location)
    outcomes: list[Outcome] = []
    for outcome in report.conformance(location, deadline=given.deadline or DEADLINE):
        outcomes.append(outcome)
        if not given.json:
            print(report.told(outcome), flush=True)
    print(report.json_report(location, outcomes) if given.json else report.summary(outcomes))
    return int(any(outcome.verdict is Verdict.FAILED for outcome in outcomes))


def _table(table: str, into: str | None) -> int:
    if into is None:
        print(table)
        return 0
    page = Path(into)
    try:
        text = page.read_text()
    except OSError as error:
        print(f"remit: cannot read {into}: {error.strerror}; name a page that exists", file=sys.stderr)
        return FAILED
    before, begins, rest = text.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not ends:
        print(f"remit: {into} has no {TABLE_BEGINS} followed by {TABLE_ENDS}: write them into it", file=sys.stderr)
        return FAILED
    page.write_text(f"{before}{begins}\n\n{table}\n\n{ends}{after}")
    return 0


# -- parts -----------------------------------------------------------------------------------------------------


class _Printer:
    """Prints events until there were enough, a signal comes, or nobody reads any more."""

    def __init__(self, count: int | None) -> None:
        self.left = count
        self.done = False
        self.code = 0
        self.waker = Waker()

    def show(self, event: Event) -> None:
        print(_line(event), flush=True)
        if self.left is not None:
            self.left -= 1
            self.done = self.done or self.left == 0

    def failed(self, event: Event, error: Exception) -> None:
        """Hear what kept an event from being printed: as a rule, that the reader of our output has gone."""
        if isinstance(error, BrokenPipeError):
            # What is left in the buffer would fail once more while the interpreter ends.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            self.stop()
        else:
            print(f"remit: cannot print {event.name!r}: {error}", file=sys.stderr)
            self.code = FAILED

    def stop(self) -> None:
        """Make it end. Safe in a signal handler."""
        self.done = True
        self.waker.wake()


def _line(event: Event) -> str:
    import msgspec

    shown: dict[str, Any] = {"name": event.name, "args": event.args}
    if event.kwargs:
        shown["kwargs"] = event.kwargs
    if event.headers:
        shown["headers"] = event.headers
    if event.sender is not None:
        shown["sender"] = event.sender.id
    return msgspec.json.encode(shown).decode()


@contextmanager
def _ending(printer: _Printer) -> Iterator[None]:
    """Let SIGINT and SIGTERM end the listening, and not the event that is being printed."""

    def end(number: int, frame: FrameType | None) -> None:
        printer.stop()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        quoted = f"'{json.dumps(text)}'"
        raise argparse.ArgumentTypeError(f"{text!r} is not JSON; for a text write {quoted}") from None


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds")
    return seconds


def _above_zero(text: str) -> float:
    seconds = _seconds(text)
    if seconds == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0")
    return seconds


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number")
    return int(text)
