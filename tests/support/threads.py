"""What the kernel says of each thread of a process, while threads begin and end."""

from __future__ import annotations

import contextlib
from pathlib import Path

__all__ = ["of_each_thread"]


def of_each_thread(file: str, pid: int | str = "self") -> list[str]:
    """Read a file of /proc/PID/task for each thread; one that ends after the listing is left out."""
    texts = []
    for thread in Path(f"/proc/{pid}/task").iterdir():
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            texts.append((thread / file).read_text())
    return texts
