"""Remit over Redis pub/sub. Only the plugin's hook: hiredis is imported when the first location is opened."""

from __future__ import annotations

from remit.transport import Transport, hookimpl


@hookimpl
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for a scheme, or None for the scheme of another plugin."""
    if scheme not in ("redis", "rediss", "redis+unix"):
        return None
    from remit_redis.transport import RedisTransport

    return RedisTransport(scheme)
