"""Paths of Unix sockets: the user's private folder, names in it, and the checks that every transport on files needs."""

from __future__ import annotations

import contextlib
import itertools
import os
import socket
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

from remit.errors import BadLocation, TransportError

if TYPE_CHECKING:
    from remit.location import Location

__all__ = [
    "fresh_name",
    "fresh_path",
    "has_unix_sockets",
    "remove_socket",
    "runtime_folder",
    "shared_path",
    "socket_path",
]


MAX_PATH_BYTES: Final = 107
"""Linux: sun_path has 108 bytes, with the final zero."""
MAX_FOLDER_BYTES: Final = 60
"""Bytes of a folder's path that leave enough of `MAX_PATH_BYTES` for a file's name."""
MAX_HINT_CHARACTERS: Final = 16
"""Characters of a hint that are taken over into a file's name."""
OWNER_ONLY: Final = 0o700

_numbers = itertools.count(1)


def has_unix_sockets() -> bool:
    """Say whether this system has Unix sockets, and users to own their folder."""
    return hasattr(socket, "AF_UNIX") and hasattr(os, "geteuid")


def runtime_folder() -> Path:
    """Return a folder that only this user can enter, made if need be.

    It is ``$XDG_RUNTIME_DIR/remit`` where that is set and ours, else ``remit-UID`` among the temporary files.
    Raises BadLocation when it belongs to somebody else or is open to others.
    """
    folder = _session_folder() or _temporary_folder()
    folder.mkdir(mode=OWNER_ONLY, exist_ok=True)
    if fault := _fault(folder):
        raise BadLocation(f"{folder} {fault}: remove it, or set XDG_RUNTIME_DIR to a folder of your own")
    return folder


def shared_path() -> str:
    """Return the path at which this user's programs meet when no location is configured."""
    return str(runtime_folder() / "default.sock")


def fresh_path(hint: str, folder: Path | None = None) -> str:
    """Return a path that nobody else has been given."""
    return str((folder or runtime_folder()) / fresh_name(hint))


def fresh_name(hint: str) -> str:
    """Return a name that nobody else has been given."""
    readable = "".join(
        character for character in hint if (character.isascii() and character.isalnum()) or character in "-_"
    )
    return f"{readable[:MAX_HINT_CHARACTERS] or 'private'}-{os.getpid()}-{next(_numbers)}-{os.urandom(4).hex()}"


def socket_path(location: Location, *, reserved: int = 0) -> str:
    """Return the path of a location that is a Unix socket.

    ``reserved`` bytes are left free for what the transport appends to the path. Raises BadLocation.
    """
    if location.host or location.port is not None or not location.path.strip("/"):
        example = f"{location.scheme}:///tmp/events.sock"
        raise BadLocation(f"{location} names no file: write three slashes, for example {example}")
    most = MAX_PATH_BYTES - reserved
    if len(os.fsencode(location.path)) > most:
        raise BadLocation(f"the path of {location} is over {most} bytes; choose a shorter one")
    return location.path


def remove_socket(path: str) -> None:
    """Remove a socket that a dead server left, if there is one. Only the holder of the path's `FileLock` may.

    Raises TransportError if a file of another kind is there.
    """
    with contextlib.suppress(FileNotFoundError):
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise TransportError(f"cannot open {path}: a file which is not a socket is there; choose another path")
        os.unlink(path)  # noqa: PTH108


def _session_folder() -> Path | None:
    """Return our folder below the session's, unless that is not fit for it."""
    base = Path(os.environ.get("XDG_RUNTIME_DIR", ""))
    if not base.is_absolute() or len(os.fsencode(base)) > MAX_FOLDER_BYTES or not base.is_dir() or _fault(base):
        return None
    return base / "remit"


def _temporary_folder() -> Path:
    import tempfile  # dear, and most sessions have a folder of their own

    base = Path(tempfile.gettempdir())
    if len(os.fsencode(base)) > MAX_FOLDER_BYTES:
        base = Path("/tmp")
    return base / f"remit-{os.geteuid()}"


def _fault(folder: Path) -> str:
    # lstat: a link that somebody else laid there would lead to a folder of his choice.
    status = folder.lstat()
    if not stat.S_ISDIR(status.st_mode):
        return "is not a folder"
    if status.st_uid != os.geteuid():
        return f"belongs to user {status.st_uid}"
    return "is open to other users" if stat.S_IMODE(status.st_mode) & 0o077 else ""
