"""Opens servers and clients over Redis, from the URLs and options of locations."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

from remit.errors import BadLocation
from remit.location import Location, read_seconds, read_size
from remit.transport import Capabilities, Link
from remit_redis.connection import Address
from remit_redis.links import ChannelNames, ClientLink, ServerLink

LEASE_S: Final = 3.0
"""Default of the option ``lease``: time for which a server keeps its location without a renewal."""
MIN_LEASE_S: Final = 0.2
MAX_LEASE_S: Final = 3600.0
MAX_FRAME: Final = 8 * 1024 * 1024
"""Limit of the option ``max_frame``. By default Redis disconnects a subscriber that is 32 MiB behind, or 8 MiB for a
minute (client-output-buffer-limit pubsub)."""


def _read_max_frame(text: str) -> int:
    size = read_size(text)
    if size > MAX_FRAME:
        raise ValueError(f"over {MAX_FRAME} bytes, redis would drop a subscriber that is a little slow")
    return size


def _read_lease(text: str) -> float:
    seconds = read_seconds(text)
    if not MIN_LEASE_S <= seconds <= MAX_LEASE_S:
        raise ValueError(f"a lease is {MIN_LEASE_S} to {MAX_LEASE_S:.0f} seconds long")
    return seconds


def _read_database(text: str) -> int:
    if not (text.isascii() and text.isdecimal()):
        raise ValueError("a database is a number")
    return int(text)


def _read_file(text: str) -> str:
    if not Path(text).is_file():
        raise ValueError("there is no such file")
    return text


def _read_prefix(text: str) -> str:
    if not text or not text.isprintable() or " " in text:
        raise ValueError("a prefix is a word that begins the names of keys and channels")
    return text


class RedisTransport:
    """Opens links over one Redis server's pub/sub: ``redis://``, ``rediss://`` (TLS) and ``redis+unix://``.

    All locations with the same server, database and prefix are one location.
    """

    options: Mapping[str, Callable[[str], Any]] = {
        "ca": _read_file,
        "db": _read_database,
        "lease": _read_lease,
        "max_frame": _read_max_frame,
        "prefix": _read_prefix,
    }

    def __init__(self, scheme: str) -> None:
        self.capabilities = Capabilities(
            max_frame=1024 * 1024,
            # Redis buffers what a slow subscriber has not read, and disconnects it above the limit. 16 clients that
            # fill their windows stay below 4 MiB.
            window=256 * 1024,
            crosses_hosts=scheme != "redis+unix",
        )

    def bind(self, location: Location) -> Link:
        """Open a server. Waits until the lease of a dead server expires.

        Raises LocationInUse, TransportError, LocationError.
        """
        lease, parts = self._read(location)
        return ServerLink(location, *parts, lease=lease).open()

    def connect(self, location: Location) -> Link:
        """Open a client, which reports `Up` once Redis runs and a server is bound.

        Raises TransportError if Redis refuses the client, LocationError.
        """
        _, parts = self._read(location)
        return ClientLink(location, *parts).open()

    def _read(self, location: Location) -> tuple[float, tuple[Capabilities, Address, ChannelNames]]:
        values = location.read(self.options)
        local = location.scheme == "redis+unix"
        if local and (location.host or not location.path.strip("/")):
            raise BadLocation(f"{location} has no path; write, for example, redis+unix:///run/redis.sock?db=0")
        path = "" if local else location.path.strip("/")
        if path and ("db" in values or not (path.isascii() and path.isdecimal())):
            raise BadLocation(f"the path of {location} is the number of the database, given once: redis://host:6379/0")
        if "ca" in values and location.scheme != "rediss":
            raise BadLocation(f"option 'ca' of {location} is for TLS: write rediss://")
        database = int(path) if path else values.get("db", 0)
        address = Address(location=location, database=database, authorities=values.get("ca"))
        names = ChannelNames(values.get("prefix", "remit"), database)
        capabilities = replace(self.capabilities, max_frame=values.get("max_frame", self.capabilities.max_frame))
        return values.get("lease", LEASE_S), (capabilities, address, names)
