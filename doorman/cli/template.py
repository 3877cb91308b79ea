"""Template: the step between a command with placeholders and the command for one input. Pure."""

from __future__ import annotations

import os.path
import re
import shlex
from collections.abc import Callable, Sequence
from typing import Final

from doorman.errors import BadCommandLine

__all__ = ["MARK", "Template", "split"]

MARK: Final = ":::"
"""What stands between the command and its inputs."""
_PLACEHOLDER: Final = re.compile(r"\{(?:\.|/|//|/\.|#)?\}")
_VALUES: Final[dict[str, Callable[[str, int], str]]] = {
    "{}": lambda text, _: text,
    "{.}": lambda text, _: _bare(text),
    "{/}": lambda text, _: os.path.basename(text),  # noqa: PTH119 - an input need not be a path
    "{//}": lambda text, _: os.path.dirname(text) or ".",  # noqa: PTH120
    "{/.}": lambda text, _: _bare(os.path.basename(text)),  # noqa: PTH119
    "{#}": lambda _, number: str(number),
}


class Template:
    """A command with placeholders; appended to it is the input if it has none. Raises BadCommandLine if it is empty."""

    def __init__(self, words: Sequence[str], *, shell: bool = False) -> None:
        if not words:
            raise BadCommandLine("no command is given: write one, as in: doorman map gzip {} ::: *.log")
        self._words = list(words)
        self._shell = shell
        if not any(_PLACEHOLDER.search(word) for word in words):
            self._words.append("{}")

    def filled(self, text: str, number: int) -> list[str]:
        """Return the command for one input, which is the ``number``-th. A shell gets the input quoted."""
        if not self._shell:
            return [_fill(word, text, number, str) for word in self._words]
        return ["/bin/sh", "-c", _fill(" ".join(self._words), text, number, shlex.quote)]


def split(words: Sequence[str]) -> tuple[list[str], list[str] | None]:
    """Return the command and its inputs; None: they come from standard input. Raises BadCommandLine."""
    if MARK not in words:
        return list(words), None
    at = words.index(MARK)
    command, inputs = list(words[:at]), list(words[at + 1 :])
    if MARK in inputs:
        raise BadCommandLine(f"{MARK!r} is given twice: write all inputs behind one, or make the pairs in a shell")
    return command, inputs


def _fill(word: str, text: str, number: int, quoted: Callable[[str], str]) -> str:
    return _PLACEHOLDER.sub(lambda found: quoted(_VALUES[found[0]](text, number)), word)


def _bare(text: str) -> str:
    return os.path.splitext(text)[0]  # noqa: PTH122
