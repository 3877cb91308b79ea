"""Addresses of a location's lobby and of its channels, as nng URLs, and the socket files that belong to them."""

from __future__ import annotations

import contextlib
import os
import re
from typing import Any, Final

from remit.errors import TransportError
from remit.location import Location
from remit.runtime_dirs import remove_socket, socket_path
from remit.transport import tcp_address

SUFFIX: Final = "~"
"""Separates the lobby's path from the name of a channel, which has eight hexadecimal digits."""


def uses_files(location: Location) -> bool:
    """Return whether a location is a path of the file system."""
    return location.scheme == "nng+ipc"


def lobby_address(location: Location, *, binding: bool) -> str:
    """Return the address of the lobby. Raises BadLocation."""
    if uses_files(location):
        return f"ipc://{socket_path(location, reserved=len(SUFFIX) + 8)}"
    return tcp_address(location, binding=binding)


def channel_address(location: Location, name: str) -> str:
    """Return the address of a channel: ``name`` is a port, or the end of a path."""
    if uses_files(location):
        return f"ipc://{location.path}{SUFFIX}{name}"
    return f"{tcp_address(location, binding=True).rpartition(':')[0]}:{name}"


def remove_stale_sockets(location: Location) -> None:
    """Remove the sockets that a dead server left. Only the holder of the path's lock may. Raises TransportError."""
    remove_socket(location.path)
    folder, own = os.path.split(location.path)
    pattern = re.compile(re.escape(own + SUFFIX) + "[0-9a-f]{8}")
    with os.scandir(folder) as entries:
        channels = [entry.path for entry in entries if pattern.fullmatch(entry.name)]
    for path in channels:
        with contextlib.suppress(TransportError):  # a file that only looks like ours stays
            remove_socket(path)


def listen(socket: Any, address: str) -> Any:
    """Return a listener at an address. Only this user can connect to a socket's file."""
    listener = socket.listen(address)
    if address.startswith("ipc://"):
        os.chmod(address.removeprefix("ipc://"), 0o600)  # noqa: PTH101
    return listener
