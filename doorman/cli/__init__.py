"""Command line: `doorman run`, `map`, `up`, `ps`, `stop`, `top`: proven processes without a program of one's own."""

from __future__ import annotations

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


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code: what the command says, 2 after an error, 130 when interrupted."""
    try:
        given = given_by(sys.argv[1:] if arguments is None else arguments)
        return int(given.run(given))
    except (DoormanError, RemitError) as error:
        print(f"doorman: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
