"""Logs: what each task writes to standard output and standard error, kept by descriptor."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import NamedTuple

__all__ = ["Logs", "Outputs"]


class Outputs(NamedTuple):
    """The descriptors to give to one process; None to share the manager's own."""

    stdout: int | None = None
    stderr: int | None = None

    def close(self) -> None:
        """Close the manager's own copies once the process has its."""
        for descriptor in self:
            if descriptor is not None:
                os.close(descriptor)


class Logs:
    """A folder with two files for each task, ``<name>-<attempt>.out`` and ``.err``; or two for all tasks together.

    ``shared`` makes it ``stdout.log`` and ``stderr.log``, to which every task appends. The kernel writes straight into
    the files: nothing is lost when a process is killed or its manager dies. Without a folder tasks share the manager's
    own standard output and error, as any child does.
    """

    def __init__(self, folder: str | os.PathLike[str] | None, *, shared: bool = False) -> None:
        self._folder = None if folder is None else Path(folder).absolute()
        self.shared = shared
        if self._folder is not None:
            self._folder.mkdir(parents=True, exist_ok=True)
        elif shared:
            raise ValueError("shared_log needs a folder to be in: give log_path too")

    def paths(self, name: str, attempt: str) -> tuple[Path, Path] | None:
        """Return where one attempt's output and errors go; None without a folder."""
        if self._folder is None:
            return None
        if self.shared:
            return self._folder / "stdout.log", self._folder / "stderr.log"
        stem = f"{re.sub(r'[^A-Za-z0-9._-]+', '_', name)[:80]}-{attempt}"
        return self._folder / f"{stem}.out", self._folder / f"{stem}.err"

    def open(self, name: str, attempt: str) -> Outputs:
        """Open one attempt's files. Raises OSError."""
        paths = self.paths(name, attempt)
        if paths is None:
            return Outputs()
        # Appending, so that those who share a file do not write over each other, nor what was rotated away.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        stdout = os.open(paths[0], flags, 0o644)
        try:
            return Outputs(stdout, os.open(paths[1], flags, 0o644))
        except OSError:
            os.close(stdout)
            raise
