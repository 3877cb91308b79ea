"""Registry of the running managers of this user: one JSON file for each, in a private folder."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import threading
import time
from pathlib import Path
from typing import Final

import msgspec

from doorman.errors import IdentityRefused, NameTaken
from doorman.identity import Identity, Refusal, boot_id, own_identity
from doorman.process import own_pid_namespace
from remit import Location
from remit.errors import LocationInUse, RemitError
from remit.runtime_dirs import OWNER_ONLY, runtime_folder, write_private_file
from remit.transport import FileLock

logger = logging.getLogger("doorman")

FOLDER: Final = "managers"
CHECK_INTERVAL_S: Final = 0.5
"""Seconds between two checks of the files of an entry."""
NAME: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,79}")
_ENDED: Final = frozenset({Refusal.NO_SUCH_PROCESS, Refusal.OTHER_PROCESS, Refusal.ELSEWHERE})


class ManagerEntry(msgspec.Struct, frozen=True, kw_only=True):
    """The registry file of one manager."""

    name: str
    kind: str
    """``run``, ``map`` or ``up``, or ``manager`` for one in a user's program."""
    url: str
    """Its location, with the password if it has one: only this user can read the file."""
    key: bytes
    """Signs requests on transports that do not attest the user."""
    process: Identity
    since: float
    """Seconds since the epoch, for display."""

    @property
    def location(self) -> Location:
        """Location of the manager's server."""
        return Location(self.url)

    @property
    def stale(self) -> bool:
        """Whether the process has certainly ended: the host has booted since, or no process has its inode."""
        if self.process.boot_id != boot_id():
            return True
        try:
            self.process.open().close()
        except IdentityRefused as error:
            # A process in a PID namespace that is not visible from here may be alive.
            return error.reason in _ENDED and self.process.pid_namespace == own_pid_namespace()
        return False


class Registration:
    """Keeps the registry entry of a manager until `close` or the end of this process. Raises NameTaken, ValueError.

    A daemon thread restores the files of the entry if another program removes them.
    """

    def __init__(self, name: str, location: Location, *, kind: str, key: bytes) -> None:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r} cannot name a manager: use up to 80 letters, digits, '_', '-' and '.'")
        self._owner = os.getpid()
        self._failed = False
        self._path = folder() / f"{name}.json"
        try:
            self._lock: FileLock | None = FileLock(str(self._path))
        except LocationInUse as error:
            entry = _read(self._path)
            pid = f" (pid {entry.process.pid})" if entry else ""
            raise NameTaken(
                f"a manager named {name!r} runs already{pid}: choose another name, or stop it: doorman stop {name}"
            ) from error
        process = own_identity("manager")
        self.entry = ManagerEntry(name=name, kind=kind, url=location.url, key=key, process=process, since=time.time())
        write_private_file(self._path, msgspec.json.encode(self.entry))
        self._closed = threading.Event()
        self._restoring = threading.Lock()
        threading.Thread(target=self._keep, name="doorman-registry", daemon=True).start()

    def close(self) -> None:
        """Remove the entry, but not in a forked child. May be called twice."""
        # In a forked child the entry is the parent's, and the fork handler has released the lock.
        if self._owner != os.getpid():
            return
        self._closed.set()
        with self._restoring:
            lock, self._lock = self._lock, None
            if lock is not None:
                # Unlink under the lock: after its release the file may belong to another manager with this name.
                self._path.unlink(missing_ok=True)
                lock.release()

    def _keep(self) -> None:
        while not self._closed.wait(CHECK_INTERVAL_S):
            with self._restoring:
                if self._lock is None:
                    return
                try:
                    if not self._path.parent.is_dir():
                        folder()
                    self._lock.renew()
                    if not self._path.exists():
                        write_private_file(self._path, msgspec.json.encode(self.entry))
                except LocationInUse:
                    logger.warning(
                        "another manager took the name %r: doorman ps no longer shows this one", self.entry.name
                    )
                    self._lock = None
                except (RemitError, OSError) as error:
                    if not self._failed:
                        logger.warning("manager %r cannot restore its entry %s: %s", self.entry.name, self._path, error)
                    self._failed = True
                else:
                    self._failed = False


def folder() -> Path:
    """Return the folder of the entries; create it if needed. Raises BadLocation if other users can write to it."""
    path = runtime_folder() / FOLDER
    path.mkdir(mode=OWNER_ONLY, exist_ok=True)
    return path


def entries() -> list[ManagerEntry]:
    """Return the entries of this user's managers, oldest first, and remove stale ones."""
    found = []
    for path in folder().glob("*.json"):
        if (entry := _read(path)) is not None:
            found.append(entry)
            continue
        with contextlib.suppress(LocationInUse):
            lock = FileLock(str(path))
            # Read it again under the lock: another manager may have registered the name since.
            if _read(path) is None:
                path.unlink(missing_ok=True)
            lock.release()
    return sorted(found, key=lambda entry: entry.since)


def _read(path: Path) -> ManagerEntry | None:
    """Return an entry; None if it is missing, invalid or stale."""
    try:
        entry = msgspec.json.decode(path.read_bytes(), type=ManagerEntry)
    except (FileNotFoundError, msgspec.MsgspecError):
        return None
    return None if entry.stale else entry
