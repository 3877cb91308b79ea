"""Resume: what a journal says `doorman map` has done before, so that it is not run again."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from doorman.journal.journal import Journal
from doorman.manager import ProcessManager
from doorman.states import State

__all__ = ["Before", "drop_rest", "journal_for"]


class Before:
    """The commands that ended well according to a journal; empty without one. Raises JournalError."""

    def __init__(self, path: str | None) -> None:
        self._done: Counter[tuple[str, ...]] = Counter()
        if path is not None and Path(path).exists():
            self._done.update(each.command for each in Journal.read(path) if each.state is State.DONE)

    def did(self, command: Sequence[str]) -> bool:
        """Tell whether this was done; once for each time that it was."""
        # As a journal writes it: the name of a file need not be text.
        words = tuple(word.encode(errors="backslashreplace").decode() for word in command)
        if not self._done[words]:
            return False
        self._done[words] -= 1
        return True


def journal_for(path: str | None) -> dict[str, Any]:
    """Return the manager's option that has it write a journal, which forgets nothing."""
    return {} if path is None else {"journal": Journal(path, keep=sys.maxsize)}


def drop_rest(manager: ProcessManager) -> None:
    """Drop what the manager before has left waiting: it comes again with its input."""
    for task in manager.recovered:
        task.cancel()
