"""Monitor: how ZeroMQ tells what becomes of a socket's connections."""

from __future__ import annotations

import itertools
import struct
from collections.abc import Iterator
from typing import Final

import zmq

__all__ = ["reported", "watch"]

_REPORT: Final = struct.Struct("=HI")
"""An event's number and value. Not by pyzmq's own reader, which imports asyncio: 20 ms."""

_numbers = itertools.count(1)


def watch(socket: zmq.Socket[bytes], events: int) -> zmq.Socket[bytes]:
    """Return a socket that receives a report of each event; ``socket.disable_monitor()`` ends it. Raises ZMQError."""
    reports: zmq.Socket[bytes] = socket.context.socket(zmq.PAIR)
    try:
        # No bound: with one, reports that nobody reads would in time stop ZeroMQ's thread, which all links share,
        # with a lock held that closing this one needs.
        reports.setsockopt(zmq.RCVHWM, 0)
        address = f"inproc://remit-monitor-{next(_numbers)}"
        socket.monitor(address, events)
        reports.connect(address)
    except zmq.ZMQError:
        reports.close(linger=0)
        raise
    return reports


def reported(reports: zmq.Socket[bytes]) -> Iterator[int]:
    """Yield the events that have been reported so far."""
    while True:
        try:
            parts = reports.recv_multipart(zmq.NOBLOCK)
        except zmq.Again:
            return
        yield _REPORT.unpack(parts[0])[0]
