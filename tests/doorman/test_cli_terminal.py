"""`doorman map` on a terminal leaves the cursor, the lines of the output and the prompt as they should be."""

from __future__ import annotations

import os
import pty
import re
import signal
import struct
import subprocess
import termios
import time
from collections.abc import Callable
from fcntl import ioctl

import pytest
from commands import DOORMAN
from waiting import DEADLINE

MAP = ("map", "-j", "1", "--table", "none", "sh", "-c")
STOPPED = "doorman: 0 done, 0 failed, 2 not run or stopped in .* s"
Act = Callable[["Terminal"], None]


class Terminal:
    """A program that runs on a terminal of its own, and the bytes that it has written there."""

    def __init__(self, *words: str, columns: int = 200) -> None:
        self.ours, theirs = pty.openpty()
        ioctl(theirs, termios.TIOCSWINSZ, struct.pack("4H", 24, columns, 0, 0))
        self.seen = b""
        self.process = subprocess.Popen(words, preexec_fn=lambda: os.login_tty(theirs))
        os.close(theirs)

    def type(self, keys: bytes) -> None:
        os.write(self.ours, keys)

    def until(self, pattern: bytes) -> None:
        """Read until the pattern has been written after what was read before."""
        begun = len(self.seen)
        deadline = time.monotonic() + DEADLINE
        while not re.search(pattern, self.seen[begun:]):
            assert time.monotonic() < deadline, self.seen
            self.seen += self._read()

    def ended(self) -> int:
        while part := self._read():
            self.seen += part
        os.close(self.ours)
        return self.process.wait(DEADLINE)

    def lines(self) -> list[str]:
        """Return the lines of a screen that is wide enough for each."""
        rows, column = [""], 0
        for part in re.findall(r"\x1b\[K|\r|\n|[^\x1b\r\n]+|.", self.seen.decode()):
            if part == "\n":
                rows.append("")
            elif part == "\r":
                column = 0
            elif part == "\x1b[K":
                rows[-1] = rows[-1][:column]
            else:
                rows[-1] = rows[-1][:column] + part + rows[-1][column + len(part) :]
                column += len(part)
        return rows

    def _read(self) -> bytes:
        try:
            return os.read(self.ours, 65536)
        except OSError:
            return b""  # its other end is closed


@pytest.mark.parametrize(
    ("script", "act", "code", "left"),
    [
        ("echo out $0", None, 0, ["out a", "out b", r"doorman: 2 done, 0 failed in .* s"]),
        ("printf half-$0", None, 0, ["half-a", "half-b", "doorman: 2 done.*"]),
        ("exit 3", None, 2, ["doorman: 'a' failed: 3", "doorman: 'b' failed: 3", "doorman: 0 done, 2 failed.*"]),
        ("exec sleep 1000", lambda shown: shown.type(b"\x03"), signal.SIGINT, [r"(\^C)?" + STOPPED]),
        ("exec sleep 1000", lambda shown: shown.process.terminate(), signal.SIGTERM, [STOPPED]),
    ],
    ids=["output", "half a line", "failures", "Ctrl-C", "TERM"],
)  # fmt: skip
def test_nothing_is_left_of_the_bar(script: str, act: Act | None, code: int, left: list[str]) -> None:
    shown = Terminal(*DOORMAN, *MAP, f"sleep 0.2; {script}", ":::", "a", "b")
    shown.until(b"0/2")
    if act is not None:
        act(shown)
    assert shown.ended() in (code, -code, 128 + code)
    assert b"\x1b[?25" not in shown.seen  # The cursor is never hidden.
    lines = shown.lines()
    assert lines.pop() == ""  # The prompt begins on a line of its own.
    assert [bool(re.fullmatch(pattern, line)) for pattern, line in zip(left, lines, strict=True)] == [True] * len(
        left
    ), lines


def test_a_stopped_map_continues_below_what_the_shell_writes() -> None:
    shown = Terminal("sh", "-i", "-m")
    shown.type(f"PS1='> '; {' '.join(DOORMAN)} map -j 1 --table none sleep ::: 0.5 0.5; echo END=$?\n".encode())
    shown.until(b"0/2")
    shown.type(b"\x1a")
    shown.until(rb"> ")
    shown.type(b"fg\n")
    shown.until(rb"0 failed in .*\n")
    shown.type(b"exit\n")
    shown.ended()
    lines = shown.lines()
    assert any(re.fullmatch(r".*doorman: 2 done, 0 failed in .* s", line) for line in lines), lines
    assert b"\x1b[?25" not in shown.seen
