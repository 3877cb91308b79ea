"""The two small files that a detached process leaves for the manager that adopts it.

The process writes the outcome of its task, and its zygote writes how the process exited. They replace messages while no
manager runs.
"""

from __future__ import annotations

import contextlib
from collections.abc import Container
from pathlib import Path
from typing import Final

import msgspec

from doorman.identity import Credential
from doorman.launcher import Exited
from remit.runtime_dirs import PART_SUFFIX, write_private_file

_OUTCOME: Final = ".result"
_EXIT: Final = ".end"
_SIGNATURE_BYTES: Final = 32
_PURPOSE: Final = b"doorman.outcome"
_ExitFields = tuple[str, int | None, int | None, int | None, float | None]


def write_outcome(record: str, outcome: bytes, credential: Credential) -> None:
    """Write an encoded outcome, signed. Raises OSError."""
    write_private_file(record + _OUTCOME, credential.sign(_PURPOSE + outcome) + outcome)


def read_outcome(record: str, credential: Credential) -> bytes | None:
    """Return the encoded outcome; None if the file is missing or not signed by this attempt's process."""
    data = _read(record + _OUTCOME)
    if data is None or not credential.check(_PURPOSE + data[_SIGNATURE_BYTES:], data[:_SIGNATURE_BYTES]):
        return None
    return data[_SIGNATURE_BYTES:]


def write_exit(record: str, exited: Exited) -> None:
    """Write how a process exited. If the file cannot be written, the exit status stays unknown."""
    with contextlib.suppress(OSError):
        write_private_file(record + _EXIT, msgspec.msgpack.encode(tuple(exited)))


def read_exit(record: str) -> Exited | None:
    """Return how a process exited; None if the file is missing or damaged."""
    data = _read(record + _EXIT)
    try:
        return None if data is None else Exited(*msgspec.msgpack.decode(data, type=_ExitFields))
    except msgspec.MsgspecError:
        return None


def remove_files(record: str) -> None:
    """Remove both files of an attempt."""
    for suffix in (_OUTCOME, _EXIT):
        with contextlib.suppress(OSError):
            Path(record + suffix).unlink()


def remove_stale(folder: Path, kept: Container[str]) -> None:
    """Remove the files of all attempts except ``kept``."""
    with contextlib.suppress(OSError):  # The folder does not exist before the first detached task.
        for file in list(folder.iterdir()):
            if file.name.endswith((_OUTCOME, _EXIT, PART_SUFFIX)) and file.name.rpartition(".")[0] not in kept:
                file.unlink(missing_ok=True)


def _read(path: str) -> bytes | None:
    try:
        return Path(path).read_bytes()
    except OSError:
        return None
