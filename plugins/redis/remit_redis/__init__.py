"""Remit over Redis pub/sub. Only the plugin's hook: hiredis is imported when the first location is opened."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from remit.hookspecs import hookimpl

if TYPE_CHECKING:
    from remit.transport import Transport

SCHEMES: Final = ("redis", "rediss", "redis+unix")


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for `SCHEMES`."""
    if scheme not in SCHEMES:
        return None
    from remit_redis.transport import RedisTransport

    return RedisTransport(scheme)
