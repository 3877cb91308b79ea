"""Lines: the step between the bytes that a task writes and the lines that its manager tells. Pure."""

from __future__ import annotations

import codecs
from typing import Final, NamedTuple

__all__ = ["LONGEST", "Line", "Lines"]

LONGEST: Final = 64 * 1024
"""Characters of a line that are told at once; what is longer comes in several pieces."""


class Line(NamedTuple):
    """One line that a task wrote."""

    stream: str
    """``"stdout"`` or ``"stderr"``."""
    text: str
    """Without the end of the line; what is no UTF-8 is shown as U+FFFD."""


class Lines:
    """Cuts what arrives in any pieces into lines. What has no end yet waits, up to `LONGEST` characters."""

    def __init__(self) -> None:
        self._decode = codecs.getincrementaldecoder("utf-8")("replace").decode
        self._begun = ""

    def feed(self, data: bytes, *, last: bool = False) -> list[str]:
        """Return the lines that end in ``data``; with ``last`` also one that has no end."""
        *whole, begun = (self._begun + self._decode(data, last)).split("\n")
        lines = [line.removesuffix("\r") for line in whole]
        if last and begun:
            lines.append(begun)
            begun = ""
        while len(begun) > LONGEST:
            lines.append(begun[:LONGEST])
            begun = begun[LONGEST:]
        self._begun = begun
        return lines if all(len(line) <= LONGEST for line in lines) else [*_pieces(lines)]


def _pieces(lines: list[str]) -> list[str]:
    return [line[at : at + LONGEST] for line in lines for at in range(0, max(1, len(line)), LONGEST)]
