"""Parser: what may be written behind `doorman`, and what each word of it means."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any, Final

from remit.cli.parser import loaded

__all__ = ["given_by"]

RUN: Final = """\
examples:
  doorman run -- make -j4 test
  doorman run --expires 60 --retries 2 -- curl -fO https://example.org/data.csv
  doorman run --name build --log-path logs -- make     (elsewhere: doorman ps; doorman stop build)

Exit code: the command's own; 128 + n if signal n ended it; 124 if it expired and ended well for all that; 127 if it
cannot be run; 2 if Doorman could not start it.
"""
MAP: Final = """\
In the command {} is replaced by the input, {.} by it without its extension, {/} by its last part, {//} by its folder,
{/.} by its last part without extension, and {#} by its number. Without any of these the input is appended.

examples:
  doorman map -j 4 gzip -9 ::: *.log
  find . -name '*.png' | doorman map --timeout 60 convert {} {.}.jpg
  doorman map --shell 'grep -c error {} > {/.}.count' ::: logs/*.txt
  doorman map --resume done.journal ./train.sh ::: 1 2 3

Exit code: how many inputs failed, 101 at the most; 128 + n if signal n stopped it; 2 after an error of Doorman's.
"""
UP: Final = """\
FILE is a Procfile (lines "name: command"), a doorman.toml, or a pyproject.toml with [tool.doorman]. Default: the first
of doorman.toml, pyproject.toml with [tool.doorman], and Procfile here.

examples:
  doorman up
  doorman up Procfile.dev --grace 10

  # doorman.toml
  [web]
  command = "python -m http.server 8000"
  restart = "permanent"     # or "transient": when it failed; or "temporary": never
  processes = 2
  env = { DEBUG = "1" }

Processes start in the file's order and stop in reverse. Exit code: 0 if all ended well or were told to stop, 1 if one
was given up.
"""
STOP: Final = """\
WHAT is a task's name or its id as `doorman ps` shows them, MANAGER/TASK where several managers have such a task, or a
manager's name to end all of it in its own order.

examples:
  doorman stop web
  doorman stop map-4711-1/17
  doorman stop --location unix:///tmp/jobs.sock web
"""


def given_by(arguments: Sequence[str]) -> argparse.Namespace:
    """Read a command line; ``run`` of what is returned does what it says. Exits with 2 when it makes no sense."""
    # Split here: argparse drops, depending on its version, another '--' than the first.
    own, behind = list(arguments), None
    if "--" in own:
        at = own.index("--")
        own, behind = own[:at], own[at + 1 :]
    given = _parser().parse_args(own)
    if behind is not None:
        _append(given, behind)
    return given


def _append(given: argparse.Namespace, behind: list[str]) -> None:
    if not hasattr(given, "command"):
        given.parser.error(f"unrecognized arguments: -- {' '.join(behind)}")
    given.command = [*given.command, "--", *behind] if given.command else behind


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="doorman", description="Runs commands as processes that are proven to be who they are."
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_run(commands)
    _add_map(commands)
    _add_up(commands)
    _add_ps(commands)
    _add_stop(commands)
    _add_top(commands)
    return parser


def _add_run(commands: Any) -> None:
    run = _command(commands, "run", "doorman.cli.run", "run one command as a proven task", RUN)
    run.usage = "doorman run [options] -- CMD [ARG ...]"
    run.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command and its arguments")
    run.add_argument("--expires", type=_seconds, metavar="SECONDS", help="stop it after so long")
    run.add_argument("--retries", type=_count, default=0, metavar="N", help="try it again so often when it fails (0)")
    run.add_argument("-v", "--verbose", action="store_true", help="tell on standard error who it is, and how it ended")
    _add_managing(run)


def _add_map(commands: Any) -> None:
    each = _command(commands, "map", "doorman.cli.map", "run a command for each input, many at a time", MAP)
    each.usage = "doorman map [options] CMD [ARG ...] [::: INPUT ...]"
    each.add_argument("command", metavar="CMD", nargs=argparse.REMAINDER, help="the command; inputs behind ':::'")
    cores = os.cpu_count() or 1
    each.add_argument(
        "-j", "--processes", type=_positive, default=cores, metavar="N", help=f"so many at a time ({cores})"
    )
    each.add_argument("--max-load", type=_per_cent, metavar="PERCENT", help="start no more while these use that much")
    each.add_argument("--retries", type=_count, default=0, metavar="N", help="try an input again so often (0)")
    each.add_argument("--timeout", type=_seconds, metavar="SECONDS", help="stop one that runs longer; it has failed")
    each.add_argument("--halt", choices=("soon", "now"), help="after a failure start no more; now: stop the others too")
    each.add_argument("-k", "--keep-order", action="store_true", help="print outputs in the order of the inputs")
    each.add_argument("--shell", action="store_true", help="have a shell read the command; inputs are quoted for it")
    each.add_argument("-0", "--null", action="store_true", help="inputs on standard input end with NUL, not newline")
    each.add_argument("--resume", metavar="JOURNAL", help="run only what this file does not say is done; note it there")
    each.add_argument("--dry-run", action="store_true", help="print the commands and run nothing")
    each.add_argument("--table", choices=("all", "failed", "none"), default="all", help="rows of the final table (all)")
    _add_managing(each)


def _add_up(commands: Any) -> None:
    up = _command(commands, "up", "doorman.cli.up", "run the named long-running processes of a file", UP)
    up.add_argument("file", metavar="FILE", nargs="?", help="a Procfile, or a TOML file")
    _add_managing(up)


def _add_ps(commands: Any) -> None:
    ps = _command(commands, "ps", "doorman.cli.ps", "list the tasks of running managers")
    ps.add_argument("--json", action="store_true", help="print what the managers tell as JSON")
    _add_asking(ps)


def _add_stop(commands: Any) -> None:
    stop = _command(commands, "stop", "doorman.cli.stop", "stop a task, or a whole manager", STOP)
    stop.add_argument("what", metavar="WHAT", help="a task's name or id, MANAGER/TASK, or a manager's name")
    stop.add_argument("--wait", type=_seconds, default=10.0, metavar="SECONDS", help="how long it may take to end (10)")
    _add_asking(stop)


def _add_top(commands: Any) -> None:
    top = _command(commands, "top", "doorman.cli.top", "watch the tasks of running managers; q ends it")
    top.add_argument("--once", action="store_true", help="print one table and end")
    top.add_argument("--interval", type=_seconds, default=1.0, metavar="SECONDS", help="between two looks (1)")
    _add_asking(top)


def _command(commands: Any, name: str, module: str, purpose: str, epilog: str = "") -> argparse.ArgumentParser:
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=purpose,
        description=f"{purpose[0].upper()}{purpose[1:]}.",
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.set_defaults(run=loaded(module), parser=parser)
    return parser


def _add_managing(parser: argparse.ArgumentParser) -> None:
    where = "where the processes and `doorman ps` speak to it: a URL, host:port, or a configured name"
    parser.add_argument("--location", metavar="URL", help=f"{where} (a private one)")
    parser.add_argument("--name", help="how ps, stop and top name it")
    parser.add_argument("--cwd", metavar="DIR", help="the working directory of the processes")
    parser.add_argument("--log-path", metavar="DIR", help="keep what each process writes in files there")
    parser.add_argument("--grace", type=_seconds, default=3.0, metavar="SECONDS", help="between TERM and KILL (3)")


def _add_asking(parser: argparse.ArgumentParser) -> None:
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--manager", metavar="NAME", help="ask this manager only")
    which.add_argument("--location", metavar="URL", help="ask the manager that is there")
    parser.add_argument("--timeout", type=_seconds, default=5.0, metavar="SECONDS", help="to wait for an answer (5)")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds above 0, such as 30 or 0.5")
    return seconds


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a positive whole number, such as 4")
    return int(text)


def _count(text: str) -> int:
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0, such as 2")
    return int(text)


def _per_cent(text: str) -> float:
    try:
        value = float(text.removesuffix("%"))
    except ValueError:
        value = -1.0
    if not 0 < value <= 100:
        raise argparse.ArgumentTypeError(f"{text!r} is not per cent of the machine above 0 and up to 100, such as 80")
    return value
