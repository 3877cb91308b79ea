"""Last words: the two small files by which a detached process tells its end while there is no manager to tell."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Container
from pathlib import Path
from typing import Final

import msgspec

from doorman._worker.outcome import Outcome
from doorman.identity import Credential
from doorman.launcher import Exited

__all__ = ["read_exit", "read_outcome", "remove_files", "remove_stale", "write_exit", "write_outcome"]


_OUTCOME: Final = ".result"
_END: Final = ".end"
_PART: Final = ".part"
_SIGNATURE: Final = 32  # bytes
_PURPOSE: Final = b"last words"
_Ending = tuple[str, int | None, int | None, int | None, float | None]


def write_outcome(record: str, outcome: Outcome, credential: Credential) -> None:
    """Write down, signed, what a task returned or raised. Raises OSError."""
    data = outcome.encode()
    _leave(record + _OUTCOME, credential.sign(_PURPOSE + data) + data)


def read_outcome(record: str, credential: Credential) -> Outcome | None:
    """Return what `leave_outcome` wrote; None if there is nothing, or nothing that this attempt has signed."""
    data = _read(record + _OUTCOME)
    if data is None or not credential.check(_PURPOSE + data[_SIGNATURE:], data[:_SIGNATURE]):
        return None
    return Outcome.decode(data[_SIGNATURE:])


def write_exit(record: str, exited: Exited) -> None:
    """Write down how a process ended, as whoever reaped it knows. What cannot be written stays unknown."""
    with contextlib.suppress(OSError):
        _leave(record + _END, msgspec.msgpack.encode(tuple(exited)))


def read_exit(record: str) -> Exited | None:
    """Return what `leave_end` wrote; None if there is nothing."""
    data = _read(record + _END)
    try:
        return None if data is None else Exited(*msgspec.msgpack.decode(data, type=_Ending))
    except msgspec.MsgspecError:
        return None


def remove_files(record: str) -> None:
    """Remove the files."""
    for kind in (_OUTCOME, _END):
        with contextlib.suppress(OSError):
            Path(record + kind).unlink()


def remove_stale(folder: Path, kept: Container[str]) -> None:
    """Remove what nobody will read: all but the last words of these attempts."""
    with contextlib.suppress(OSError):  # There is no such folder before the first detached task.
        for file in list(folder.iterdir()):
            if file.name.endswith((_OUTCOME, _END, _PART)) and file.name.rpartition(".")[0] not in kept:
                file.unlink(missing_ok=True)


def _leave(path: str, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    part = path + _PART
    with open(os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600), "wb") as file:  # noqa: PTH123
        file.write(data)
    os.replace(part, path)  # noqa: PTH105


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
