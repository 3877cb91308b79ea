"""Parser: what may be written behind `remit`, and what each word of it means."""

from __future__ import annotations

import argparse
import importlib
import json
from collections.abc import Callable, Sequence
from typing import Any, Final

from remit import __version__

__all__ = ["TABLE_BEGINS", "given_by", "loaded"]

WHERE: Final = "a URL, host:port, or a name from the configuration"
TABLE_BEGINS: Final = "<!-- capabilities: begin -->"


def given_by(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Read a command line; ``run`` of what is returned does what it says. Exits with 2 when it makes no sense."""
    parser = argparse.ArgumentParser(prog="remit", description="A distributed event emitter.")
    parser.add_argument("--version", action="version", version=f"remit {__version__}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_transports(commands)
    _add_listen(commands)
    _add_emit(commands)
    _add_request(commands)
    _add_broker(commands)
    _add_conformance(commands)
    return parser.parse_args(arguments)


def _add_transports(commands: Any) -> None:
    _command(commands, "transports", "list the installed transports and what keeps any from use")


def _add_listen(commands: Any) -> None:
    listen = _command(commands, "listen", "open a server and print its events as lines of JSON")
    listen.add_argument("location", metavar="LOCATION", help=WHERE)
    listen.add_argument("pattern", metavar="PATTERN", nargs="?", default="*", help="names to print, such as 'job.*'")
    listen.add_argument("-n", "--count", type=_positive, help="end after so many events")


def _add_emit(commands: Any) -> None:
    emit = _command(commands, "emit", "emit one event, and return once it has been handled")
    emit.add_argument("location", metavar="LOCATION", help=WHERE)
    emit.add_argument("name", metavar="NAME", help="the event's name")
    emit.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="the event's arguments, each as JSON")
    emit.add_argument("--linger", type=_seconds, help="seconds to wait for its being handled (5)")


def _add_request(commands: Any) -> None:
    request = _command(commands, "request", "ask, and print the answer as a line of JSON")
    request.add_argument("location", metavar="LOCATION", help=WHERE)
    request.add_argument("name", metavar="NAME", help="what is asked for")
    request.add_argument("arguments", metavar="ARG", nargs="*", type=_json, help="the arguments, each as JSON")
    request.add_argument("--timeout", type=_seconds, help="seconds to wait for the answer (30)")


def _add_broker(commands: Any) -> None:
    broker = _command(commands, "broker", "give what clients ask to workers, until interrupted")
    broker.add_argument("location", metavar="LOCATION", nargs="?", help=WHERE)
    broker.add_argument("--lease", type=_above_zero, default=10.0, help="seconds until a silent worker is dead (10)")
    broker.add_argument("--attempts", type=_positive, default=3, help="workers that may die of one job (3)")


def _add_conformance(commands: Any) -> None:
    conformance = _command(commands, "conformance", "put a transport to the contract's checks")
    what = conformance.add_mutually_exclusive_group(required=True)
    what.add_argument("location", metavar="LOCATION", nargs="?", help=f"{WHERE}; fresh ones are made of it")
    what.add_argument("--table", action="store_true", help="print what the installed transports declare, as Markdown")
    conformance.add_argument("--into", metavar="FILE", help=f"with --table: write it there, after {TABLE_BEGINS}")
    conformance.add_argument("--json", action="store_true", help="print the outcomes as JSON once all are known")
    conformance.add_argument("--deadline", type=_above_zero, help="seconds for each check (20)")


def _command(commands: Any, name: str, purpose: str) -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(name, help=purpose)
    parser.set_defaults(run=loaded(f"remit.cli.{name}"))
    return parser


def loaded(module: str) -> Callable[[argparse.Namespace], int]:
    """Return what imports a command when it is used: to ask for help should cost nothing."""

    def run(given: argparse.Namespace) -> int:
        return int(importlib.import_module(module).main(given))

    return run


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
