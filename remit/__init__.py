"""Remit: a distributed event emitter: listeners may live in another process or on another server.

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
    "AsyncClient",
    "AsyncServer",
    "Broker",
    "Client",
    "Event",
    "Location",
    "Pair",
    "Sender",
    "Server",
    "Worker",
    "current_job",
]
__version__ = "0.1.0"

_LATER = {
    "AsyncClient": "remit.aio",
    "AsyncServer": "remit.aio",
    "Broker": "remit.broker",
    "Pair": "remit.pair",
    "Worker": "remit.worker",
    "current_job": "remit.worker",
}
"""What is imported when it is first asked for: a child process that only emits should not pay for it."""


def __getattr__(name: str) -> Any:
    if name not in _LATER:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_LATER[name]), name)
