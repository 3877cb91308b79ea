"""Emit: `remit emit`: one event, from a shell."""

from __future__ import annotations

import argparse

from remit.client import Client

__all__ = ["main"]


def main(given: argparse.Namespace) -> int:
    """Emit it; return once it has been handled. Raises Undelivered."""
    with Client(given.location, linger=given.linger) as client:
        client.emit(given.name, *given.arguments)
    return 0
