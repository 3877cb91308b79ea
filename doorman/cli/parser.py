"""Arguments of the command line: the parser of each command, with its help text."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Sequence
from typing import Any, Final

from doorman.cores import available_cores
from remit.options import argument, read_count, read_seconds

RUN: Final = """\
examples:
  doorman run -- make -j4 test
  doorman run --expires 60 --retries 2 -- curl -fO https://example.org/data.csv
  doorman run --name build --log-path logs -- make     (elsewhere: doorman ps; doorman stop build)

Exit code: that of the command; 128 + n if signal n ended it; 124 if it reached its time limit and then exited with 0;
127 if the command is not found, 126 if it cannot be run; 2 if Doorman could not start it.
"""
MAP: Final = """\
In the command {} is replaced with the input, {.} with the input without its extension, {/} with its last path
component, {//} with its folder, {/.} with its last component without extension, and {#} with its number. Without any
of these the input is appended.

examples:
  doorman map -j 4 gzip -9 ::: *.log
  find . -name '*.png' | doorman map --timeout 60 convert {} {.}.jpg
  doorman map --shell 'grep -c error {} > {/.}.count' ::: logs/*.txt
  doorman map --resume done.journal ./train.sh ::: 1 2 3

Exit code: the number of failed inputs, at most 101; 128 + n if signal n stopped it; 2 after an error of Doorman.
"""
UP: Final = """\
FILE is a Procfile (lines "name: command"), a doorman.toml, or a pyproject.toml with [tool.doorman]. Default: the first
of doorman.toml, pyproject.toml with [tool.doorman], and Procfile in this folder.

examples:
  doorman up
  doorman up Procfile.dev --grace 10

  # doorman.toml
  [web]
  command = "python -m http.server 8000"
  restart = "permanent"     # or "transient": after a failure; or "temporary": never
  processes = 2
  env = { DEBUG = "1" }

Processes start in the order of the file and stop in reverse. Exit code: 0 if all ended well or were stopped, 1 if a
process was restarted too often or failed for good.
"""
STOP: Final = """\
WHAT is the name or id of a task as `doorman ps` shows it, MANAGER/TASK if several managers have such a task, or the
name of a manager, which stops all its tasks in its own order.

examples:
  doorman stop web
  doorman stop map-4711-1/17
  doorman stop --location unix:///tmp/jobs.sock web
"""

_SECONDS: Final = argument(read_seconds, above_zero=True)
_POSITIVE: Final = argument(read_count)
_COUNT: Final = argument(read_count, least=0)


def parse_arguments(arguments: Sequence[str]) -> argparse.Namespace:
    """Parse a command line; ``run`` of the result runs the command. Exits with 2 if it is invalid."""
    # Split at '--' here: depending on its version, argparse drops a later '--' that belongs to the command.
    own, rest = list(arguments), None
    if "--" in own:
        at = own.index("--")
        own, rest = own[:at], own[at + 1 :]
    parsed = _parser().parse_args(own)
    if rest is not None:
        if not hasattr(parsed, "command"):
            parsed.parser.error(f"unrecognized arguments: -- {' '.join(rest)}")
        parsed.command = [*parsed.command, "--", *rest] if parsed.command else rest
    return parsed


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="doorman", description="Runs commands as processes whose identity is proven before they run."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")

    run = _command(commands, "run", "run one command as a proven task", RUN)
    run.usage = "doorman run [options] -- CMD [ARG ...]"
    run.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")
    run.add_argument("--expires", type=_SECONDS, metavar="SECONDS", help="stop the command after this time")
    run.add_argument("--retries", type=_COUNT, default=0, metavar="N", help="retry a failed command N times (0)")
    run.add_argument("-v", "--verbose", action="store_true", help="print the proven pid and the end on standard error")
    _add_manager_options(run)

    map_ = _command(commands, "map", "run a command for each input, many at a time", MAP)
    map_.usage = "doorman map [options] CMD [ARG ...] [::: INPUT ...]"
    map_.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command; inputs follow ':::'")
    cores = available_cores()
    map_.add_argument(
        "-j", "--processes", type=_POSITIVE, default=cores, metavar="N", help=f"processes at a time ({cores})"
    )
    map_.add_argument(
        "--max-load", type=argument(_per_cent), metavar="PERCENT", help="start no process above this CPU load"
    )
    map_.add_argument("--retries", type=_COUNT, default=0, metavar="N", help="retry a failed input N times (0)")
    map_.add_argument("--timeout", type=_SECONDS, metavar="SECONDS", help="stop a process after this time; it failed")
    map_.add_argument("--halt", choices=("soon", "now"), help="after a failure start no more; now: also stop the rest")
    map_.add_argument("-k", "--keep-order", action="store_true", help="print outputs in the order of the inputs")
    map_.add_argument("--shell", action="store_true", help="run the command in a shell; inputs are quoted for it")
    map_.add_argument("-0", "--null", action="store_true", help="inputs on standard input end with NUL, not newline")
    map_.add_argument("--resume", metavar="JOURNAL", help="skip inputs that are done in this journal; record new ones")
    map_.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    map_.add_argument("--table", choices=("all", "failed", "none"), default="all", help="rows of the final table (all)")
    _add_manager_options(map_)

    up = _command(commands, "up", "run the named long-running processes of a file", UP)
    up.add_argument("file", metavar="FILE", nargs="?", help="a Procfile, or a TOML file")
    up.add_argument("--env-file", metavar="FILE", action="append", help="NAME=value lines (.env beside FILE)")
    _add_manager_options(up)

    ps = _command(commands, "ps", "list the tasks of running managers")
    ps.add_argument("--json", action="store_true", help="print the managers and their tasks as JSON")
    _add_selection(ps)

    stop = _command(commands, "stop", "stop a task, or a whole manager", STOP)
    stop.add_argument("what", metavar="WHAT", help="a task's name or id, MANAGER/TASK, or a manager's name")
    stop.add_argument(
        "--wait", type=_SECONDS, default=10.0, metavar="SECONDS", help="how long to wait for the end (10)"
    )
    _add_selection(stop)

    top = _command(commands, "top", "watch the tasks of running managers; q quits")
    top.add_argument("--once", action="store_true", help="print one table and exit")
    top.add_argument("--interval", type=_SECONDS, default=1.0, metavar="SECONDS", help="time between refreshes (1)")
    _add_selection(top)
    return parser


def _command(commands: Any, name: str, purpose: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Import the command when it runs: `doorman --help` does not need the process manager.
    parser.set_defaults(run=lambda parsed: importlib.import_module(f"doorman.cli.{name}").main(parsed), parser=parser)
    return parser


def _add_manager_options(parser: argparse.ArgumentParser) -> None:
    location = "where the processes and `doorman ps` reach it: a URL, host:port, or a configured name"
    parser.add_argument("--location", metavar="URL", help=f"{location} (a private one)")
    parser.add_argument("--name", help="the name for ps, stop and top")
    parser.add_argument("--cwd", metavar="DIR", help="the working directory of the processes")
    parser.add_argument("--log-path", metavar="DIR", help="keep the output of each process in files there")
    parser.add_argument("--grace", type=_SECONDS, default=3.0, metavar="SECONDS", help="between TERM and KILL (3)")


def _add_selection(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--manager", metavar="NAME", help="ask this manager only")
    which.add_argument("--location", metavar="URL", help="ask the manager at this location")
    parser.add_argument("--timeout", type=_SECONDS, default=5.0, metavar="SECONDS", help="wait for an answer (5)")


def _per_cent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = 0.0
    if not 0 < value <= 100:
        raise ValueError(f"{text!r} is not a percentage above 0 and up to 100, such as 80")
    return value
