"""Command line: `remit transports`, `listen`, `emit`, `request`, `broker`, `conformance`: Remit without a program."""

from __future__ import annotations

import signal
import sys
from collections.abc import Sequence
from typing import Final

from remit.cli.parser import given_by
from remit.errors import RemitError

__all__ = ["main"]

FAILED: Final = 2
"""Exit code when Remit refused; argparse uses the same for a wrong command line."""
INTERRUPTED: Final = 128 + signal.SIGINT


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    0; 1 when a transport did not pass; 2 after an error, told in one line; 130 when interrupted.
    """
    given = given_by(arguments)
    try:
        return int(given.run(given))
    except RemitError as error:
        print(f"remit: {' '.join(str(error).split())}", file=sys.stderr)
        return FAILED
    except KeyboardInterrupt:
        return INTERRUPTED
