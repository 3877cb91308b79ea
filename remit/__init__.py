"""A distributed event emitter. Listeners can run in another process or on another server.

The same program runs over any transport, chosen by a URL, with the same guarantees on each.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from remit.client import Client
from remit.event import Event, Sender
from remit.location import Location
from remit.server import Server

if TYPE_CHECKING:
    from remit.aio import AsyncClient, AsyncServer
    from remit.broker import Broker
    from remit.pair import Pair
    from remit.worker import Worker, current_job

__all__ = [
    "AsyncClient", "AsyncServer", "Broker", "Client", "Event", "Location", "Pair", "Sender", "Server", "Worker",
    "current_job",
]  # fmt: skip
__version__ = "0.1.0"

_LATER = {
    "AsyncClient": "remit.aio", "AsyncServer": "remit.aio", "Broker": "remit.broker", "Pair": "remit.pair",
    "Worker": "remit.worker", "current_job": "remit.worker",
}  # fmt: skip
"""Imported at first use: a child process that only emits must not pay for asyncio."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
