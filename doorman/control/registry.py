"""Registry: where a user's managers are found: a small file for each, in a folder that is this user's alone."""

from __future__ import annotations

import contextlib
import os
import re
import time
from pathlib import Path
from typing import Final

import msgspec

from doorman.errors import IdentityRefused, NameTaken
from doorman.identity import NODE_ID, Credential, Identity, Refusal, boot_id, hello
from doorman.process import start_time
from remit import Location
from remit.errors import LocationInUse
from remit.runtime_dirs import OWNER_ONLY, runtime_folder
from remit.transport import FileLock

__all__ = ["ManagerEntry", "Registration", "entries", "folder"]

FOLDER: Final = "managers"
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_GONE: Final = frozenset({Refusal.NO_SUCH_PROCESS, Refusal.OTHER_PROCESS, Refusal.ELSEWHERE})


class ManagerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """What is written down of one manager."""

    name: str
    kind: str
    """What it is: ``run``, ``map``, ``up``, or ``manager`` for one in somebody's program."""
    url: str
    """Its location, with the password if it has one: the file is this user's alone."""
    key: bytes
    """Proves, where no kernel attests who asks, that one could read this file."""
    process: Identity
    """The manager's own process."""
    since: float
    """Seconds since the epoch, for show."""

    @property
    def location(self) -> Location:
        """Where the manager is asked."""
        return Location(self.url)

    @property
    def stale(self) -> bool:
        """Whether its process has ended for certain, although nobody took the entry away.

        Four cases: 1. written before the last boot; 2. the process is there; 3. it is of a PID namespace that cannot be
        seen into from here: it may well live; 4. nobody has that inode.
        """
        if self.process.boot_id != boot_id():
            return True
        try:
            self.process.open().close()
        except IdentityRefused as error:
            return error.reason in _GONE and self.process.pid_namespace == _this_process().pid_namespace
        return False


class Registration:
    """One manager's entry, from now until `close` or the end of this process. Raises NameTaken, ValueError."""

    def __init__(self, name: str, location: Location, *, kind: str, key: bytes) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a manager: use up to 80 letters, digits, '_', '-' and '.'")
        self._owner = os.getpid()
        self._path = folder() / f"{name}.json"
        try:
            self._claim: FileLock | None = FileLock(str(self._path))
        except LocationInUse as error:
            raise NameTaken(_taken(name)) from error
        process = _this_process()
        self.entry = ManagerEntry(name=name, kind=kind, url=location.url, key=key, process=process, since=time.time())
        _write(self._path, msgspec.json.encode(self.entry))

    def close(self) -> None:
        """Take the entry away. May be called twice; in a fork it leaves the parent's alone."""
        claim, self._claim = self._claim, None
        if claim is None:
            return
        if self._owner != os.getpid():
            return
        self._path.unlink(missing_ok=True)
        claim.release()


def folder() -> Path:
    """Return the folder of the entries, made if need be. Raises BadLocation when others could write there."""
    place = runtime_folder() / FOLDER
    place.mkdir(mode=OWNER_ONLY, exist_ok=True)
    return place


def entries() -> list[ManagerEntry]:
    """Return the entries of this user's managers, oldest first; what is stale is removed."""
    found = []
    for path in folder().glob("*.json"):
        entry = _read(path)
        if entry is None or entry.stale:
            _remove(path)
        else:
            found.append(entry)
    return sorted(found, key=lambda entry: entry.since)


def _read(path: Path) -> ManagerEntry | None:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ManagerEntry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None


def _write(path: Path, data: bytes) -> None:
    """Write all at once: whoever reads sees the whole entry or none."""
    part = path.with_suffix(f".{os.getpid()}.part")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    part.replace(path)


def _remove(path: Path) -> None:
    """Remove a stale entry, unless another manager has just taken its name."""
    with contextlib.suppress(LocationInUse):
        claim = FileLock(str(path))
        entry = _read(path)
        if entry is None or entry.stale:
            path.unlink(missing_ok=True)
        claim.release()


def _taken(name: str) -> str:
    entry = _read(folder() / f"{name}.json")
    who = f" (pid {entry.process.pid})" if entry else ""
    return f"a manager named {name!r} runs already{who}: choose another name, or end it by: doorman stop {name}"


def _this_process() -> Identity:
    own = hello(Credential("manager"))
    return Identity(
        node_id=NODE_ID,
        boot_id=own["boot"],
        pid_namespace=own["namespace"],
        pid=own["pid"],
        inode=own["inode"],
        start_time=start_time(),
        attempt="manager",
        strength="start-time" if own["inode"] is None else "pidfd-inode",
        pid_inside=own["pid"],
    )
