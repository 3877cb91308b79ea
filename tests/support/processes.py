"""Other processes for the tests: code of a few lines that ends when its standard input does."""

from __future__ import annotations

import contextlib
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from links import DEADLINE

__all__ = ["SERVING", "another_process", "said"]

SUPPORT = Path(__file__).parent

SERVING = """
from links import transport_of
from remit import Location
location = Location(sys.argv[1])
server = transport_of(location).bind(location)
print(server.location, flush=True)
sys.stdin.read()
server.close(0.0)
"""
"""Program: a server at a location that does nothing until its standard input ends."""


@contextlib.contextmanager
def another_process(code: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """Run code that imports `links` in a process of its own; it ends when its standard input does."""
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(SUPPORT)!r})\n{code}", *map(str, arguments)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        yield process
        process.communicate(timeout=DEADLINE)
    finally:
        process.kill()
        process.wait()
        for pipe in (process.stdin, process.stdout):
            if pipe is not None:
                pipe.close()


def said(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], DEADLINE)
    assert ready, f"nothing said within {DEADLINE} s"
    return process.stdout.readline().strip()
