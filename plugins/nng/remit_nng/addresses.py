"""Places: nng's own names of where a lobby and its channels are, and the files that go with them."""

from __future__ import annotations

import contextlib
import os
import re
import stat
from typing import Final

from remit.errors import BadLocation, TransportError
from remit.location import Location

__all__ = ["LONGEST_PATH", "channel_name", "clear", "keep_private", "lobby_name", "on_files"]


SUFFIX: Final = "~"
"""What is between a lobby's path and the name of a channel."""
LONGEST_PATH: Final = 107 - len(SUFFIX) - 8
"""Bytes of a lobby's path: the kernel allows 107, and a channel's is longer by its name."""


def on_files(location: Location) -> bool:
    """Tell whether a location is a path of the file system."""
    return location.scheme == "nng+ipc"


def lobby_name(location: Location, *, binding: bool) -> str:
    """Return nng's name of a location. Raises BadLocation."""
    if location.username or location.password:
        raise BadLocation(f"{location}: nng knows no users and no passwords; leave them out")
    if on_files(location):
        return _file(location)
    if not location.host or location.port is None or location.path.strip("/"):
        raise BadLocation(f"{location} needs a host and a port and no more, as in nng+tcp://127.0.0.1:5555")
    if not binding and (location.port == 0 or location.host == "*"):
        raise BadLocation(f"{location} is no place to connect to; take the server's own `location`")
    return f"tcp://{_host(location)}:{location.port}"


def channel_name(location: Location, name: str) -> str:
    """Return nng's name of a channel: ``name`` is a port, or the end of a path."""
    return f"ipc://{location.path}{SUFFIX}{name}" if on_files(location) else f"tcp://{_host(location)}:{name}"


def clear(location: Location) -> None:
    """Remove the sockets of a server that died: whoever holds the claim may. Raises TransportError."""
    folder, own = os.path.split(location.path)
    pattern = re.compile(re.escape(own + SUFFIX) + "[0-9a-f]{8}")
    with contextlib.suppress(FileNotFoundError):
        if not _is_socket(location.path):
            raise TransportError(f"cannot open {location}: a file which is not a socket is there; choose another path")
        os.unlink(location.path)  # noqa: PTH108
    with os.scandir(folder) as entries:
        left = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for path in left:
        with contextlib.suppress(FileNotFoundError):
            if _is_socket(path):
                os.unlink(path)  # noqa: PTH108


def keep_private(name: str) -> None:
    """Let nobody but the user connect to a socket's file; other places are left as they are."""
    if name.startswith("ipc://"):
        os.chmod(name.removeprefix("ipc://"), 0o600)  # noqa: PTH101


def _file(location: Location) -> str:
    if location.host or location.port is not None or not location.path.strip("/"):
        raise BadLocation(f"{location} names no file: write three slashes, for example nng+ipc:///tmp/events.sock")
    if len(os.fsencode(location.path)) > LONGEST_PATH:
        raise BadLocation(f"the path of {location} is over {LONGEST_PATH} bytes; choose a shorter one")
    return f"ipc://{location.path}"


def _host(location: Location) -> str:
    return f"[{location.host}]" if ":" in location.host else location.host


def _is_socket(path: str) -> bool:
    return stat.S_ISSOCK(os.lstat(path).st_mode)
