"""Scratch: a folder for the output of one `doorman map`, and an end for those whose map was killed."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from pathlib import Path
from typing import Final

__all__ = ["Scratch"]

PREFIX: Final = "doorman-map-"
LOCK: Final = ".lock"
"""The file in it whose lock is held for as long as its process lives, however that ends."""


class Scratch:
    """A folder of this process's own, until `close` or the next one is made after this process has been killed."""

    def __init__(self) -> None:
        _sweep()
        while True:
            self.folder = Path(tempfile.mkdtemp(prefix=PREFIX))
            lock = _locked(self.folder / LOCK, os.O_CREAT)
            if lock is not None:
                self._lock = lock
                return

    def close(self) -> None:
        """Remove it."""
        shutil.rmtree(self.folder, ignore_errors=True)
        os.close(self._lock)


def _sweep() -> None:
    """Remove what other processes of this user have left behind; what has no lock yet is being made."""
    for folder in Path(tempfile.gettempdir()).glob(f"{PREFIX}*"):
        lock = _locked(folder / LOCK)
        if lock is not None:
            shutil.rmtree(folder, ignore_errors=True)
            os.close(lock)


def _locked(path: Path, flags: int = 0) -> int | None:
    """Return a descriptor that has the lock of a file of ours; None if another has it, or has just removed the file."""
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW | flags, 0o600)
    except OSError:
        return None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        status = os.fstat(descriptor)
        if status.st_uid == os.geteuid() and status.st_nlink:
            return descriptor
    except OSError:
        pass
    os.close(descriptor)
    return None
