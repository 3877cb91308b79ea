"""Command line: `doorman run`, `map`, `up`, `ps`, `stop`, `top`: proven processes without a program of one's own."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Sequence
from typing import Final

from doorman.cli.parser import given_by
from doorman.errors import DoormanError
from remit.errors import RemitError

__all__ = ["main"]

FAILED: Final = 2
"""Exit code when Doorman refused; argparse uses the same for a wrong command line."""
INTERRUPTED: Final = 128 + signal.SIGINT
UNREAD: Final = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    It is what the command says; 2 after an error, 130 when interrupted, 141 when nobody reads what it writes.
    """
    _open_what_is_closed()
    try:
        given = given_by(sys.argv[1:] if arguments is None else arguments)
        code = int(given.run(given))
        sys.stdout.flush()  # Here, where it may fail: at the interpreter's end nobody could say how.
        return code
    except (DoormanError, RemitError) as error:
        print(f"doorman: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except BrokenPipeError:
        # What is left in the buffers would fail once more while the interpreter ends.
        for stream in (sys.stdout, sys.stderr):
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        return UNREAD
    except KeyboardInterrupt:
        return INTERRUPTED


def _open_what_is_closed() -> None:
    """Give standard input, output and error something: else the next file or socket would become one of them."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - a descriptor, for good
