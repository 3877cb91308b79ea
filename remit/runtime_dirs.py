"""Paths of Unix sockets: the user's private folder, names in it, and the checks that every transport on files needs."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Final

from remit.errors import BadLocation, LocationInUse, TransportError

if TYPE_CHECKING:
    from remit.location import Location

# Linux: sun_path has 108 bytes, with the final zero.
MAX_PATH_BYTES: Final = 107
# A longer folder would leave too little of MAX_PATH_BYTES for the name of a file.
MAX_FOLDER_BYTES: Final = 60
OWNER_ONLY: Final = 0o700
PART_SUFFIX: Final = ".part"
"""Suffix of a file that `write_private_file` has not finished."""

_numbers = itertools.count(1)


def runtime_folder() -> Path:
    """Return a directory that only this user can enter, and create it if it is missing.

    It is the first that can be written of ``$XDG_RUNTIME_DIR/remit``, if that variable names a directory of this user,
    and ``remit-UID`` in the directory for temporary files. Raises BadLocation if there is none, or if it belongs to
    another user or is open to others.
    """
    reasons = []
    for folder in _runtime_folders():
        try:
            folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
        except OSError as error:
            reasons.append(f"cannot make {folder}: {error.strerror}")
            continue
        if fault := _fault(folder):
            raise BadLocation(f"{folder} {fault}: remove it, or set XDG_RUNTIME_DIR to a directory of your own")
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
        reasons.append(f"cannot write to {folder}")
    raise BadLocation(f"{'; '.join(reasons)}: set XDG_RUNTIME_DIR or TMPDIR to a directory of your own, or give a URL")


def _runtime_folders() -> Iterator[Path]:
    session = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if session.is_absolute() and not _is_too_long(session) and session.is_dir() and not _fault(session):
        yield session / "remit"
    import tempfile  # Imported here, because most login sessions have a directory.

    base = Path("/tmp")
    with contextlib.suppress(FileNotFoundError):  # No directory can be written.
        base = Path(tempfile.gettempdir())
    yield (Path("/tmp") if _is_too_long(base) else base) / f"remit-{os.geteuid()}"


def fresh_name(hint: str) -> str:
    """Return a name that no other call returns, in this or another process."""
    readable = re.sub(r"[^A-Za-z0-9_-]", "", hint)
    # A short hint, because a socket's path is limited. Random bytes, because process ids repeat in containers that
    # share the directory.
    return f"{readable[:16] or 'private'}-{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"


def socket_path(location: Location, *, reserved: int = 0) -> str:
    """Return the path of a location that is a Unix socket.

    ``reserved`` bytes are left free for a suffix that the transport appends. Raises BadLocation.
    """
    if location.host or location.username or location.port is not None or not location.path.strip("/"):
        example = f"{location.scheme}:///tmp/events.sock"
        raise BadLocation(f"{location} names no file: write three slashes, for example {example}")
    most = MAX_PATH_BYTES - reserved
    if len(os.fsencode(location.path)) > most:
        raise BadLocation(f"the path of {location} is over {most} bytes; choose a shorter one")
    return location.path


def remove_dead_socket(path: str) -> None:
    """Remove a socket that a dead program left, if there is one. Call it only with the `FileLock` of the path.

    Raises LocationInUse if a program has bound that socket, and TransportError if a file of another kind is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise TransportError(f"cannot open {path}: a file which is not a socket is there; choose another path")
        if _is_bound(path):
            raise LocationInUse(f"{path} is the socket of another program; stop that program or choose another path")
        os.unlink(path)  # noqa: PTH108


def _is_bound(path: str) -> bool:
    """Return whether a program has bound the socket at a path. Only the kernel knows: the file outlives the program."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        # Other errors than ECONNREFUSED prove a program too: EAGAIN a full backlog, EPROTOTYPE a datagram socket.
        return probe.connect_ex(path) not in (errno.ECONNREFUSED, errno.ENOENT)


def write_private_file(path: str | os.PathLike[str], data: bytes) -> None:
    """Write a file that only this user can read. A reader sees the whole content or no file. Raises OSError."""
    # Not synced: after a crash of the machine the file may be missing or empty.
    part = os.fspath(path) + PART_SUFFIX
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)
    os.replace(part, path)  # noqa: PTH105


def _is_too_long(folder: Path) -> bool:
    return len(os.fsencode(folder)) > MAX_FOLDER_BYTES


def _fault(folder: Path) -> str:
    # lstat: in /tmp another user could create a symbolic link to a directory of their choice.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is not a directory"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    return "is open to other users" if stat.S_IMODE(status.st_mode) & 0o077 else ""
