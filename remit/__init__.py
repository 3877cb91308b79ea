"""Remit: a distributed event emitter: listeners may live in another process or on another server.

The same program runs over any transport, chosen by a URL, with the same guarantees on each.
"""

from remit.broker import Broker
from remit.client import Client
from remit.event import Event
from remit.location import Location
from remit.pair import Pair
from remit.sender import Sender
from remit.server import Server
from remit.worker import Worker, current_job

__all__ = ["Broker", "Client", "Event", "Location", "Pair", "Sender", "Server", "Worker", "current_job"]
__version__ = "0.1.0"
