"""Command line of Doorman: `doorman run`, `map`, `up`, `ps`, `stop` and `top`."""

# Nothing else is imported here: until the commands handle Ctrl-C, it ends the program without a traceback.
from __future__ import annotations

import _signal as signal  # type: ignore[import-not-found]  # `signal` itself imports more.
import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Final

EXIT_ERROR: Final = 2  # argparse uses the same for an invalid command line
EXIT_INTERRUPTED: Final[int] = 128 + signal.SIGINT
EXIT_BROKEN_PIPE: Final[int] = 128 + signal.SIGPIPE


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code; 2 after an error, 130 after Ctrl-C, 141 if the output pipe is closed.

    Without ``arguments`` it is the program of this process, which Ctrl-C ends by SIGINT.
    """
    _open_closed_descriptors()
    is_program = arguments is None
    if is_program and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from remit.command_streams import EXIT_WRITE_ERROR, end_by_interrupt, guarded_streams

    interrupted = False
    with guarded_streams("doorman") as streams:
        try:
            code = _run(sys.argv[1:] if arguments is None else arguments)
        except KeyboardInterrupt:
            code, interrupted = EXIT_INTERRUPTED, True
    if is_program:
        streams.discard_lost()
        if interrupted:
            end_by_interrupt()
    return code or (EXIT_WRITE_ERROR if streams.failed else 0)


def _run(arguments: Sequence[str]) -> int:
    from doorman.cli.parser import parse_arguments
    from doorman.errors import DoormanError
    from remit.command_streams import discard_output
    from remit.errors import RemitError

    try:
        options = parse_arguments(arguments)
        code = int(options.run(options))
        # Flush here, where the error can be handled: at interpreter exit it would print a traceback.
        sys.stdout.flush()
        return code
    except (DoormanError, RemitError) as error:
        print(f"doorman: {' '.join(str(error).split())}", file=sys.stderr)
        return EXIT_ERROR
    except BrokenPipeError:
        discard_output(sys.stdout)
        discard_output(sys.stderr)
        return EXIT_BROKEN_PIPE


def _open_closed_descriptors() -> None:
    """Open /dev/null for each of stdin, stdout and stderr that is closed."""
    # Otherwise the next file or socket would get one of the numbers 0 to 2, and children would write into it.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115 - open until the process ends
