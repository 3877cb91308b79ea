"""Scarce: preloaded into a zygote, it makes forks fail as they do where the system is out of processes."""

from __future__ import annotations

import errno
import os
from pathlib import Path

FOLDER = "SCARCE"
"""The variable that names a folder: forks fail while it holds a file ``scarce``; each failure is a line in ``log``."""
_fork = os.fork


def fork() -> int:
    """Fork, or fail."""
    folder = Path(os.environ[FOLDER])
    if (folder / "scarce").exists():
        with (folder / "log").open("a") as file:
            file.write("refused\n")
        raise OSError(errno.EAGAIN, os.strerror(errno.EAGAIN))
    return _fork()


os.fork = fork
