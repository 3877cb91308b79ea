"""Request: `remit request`: one question, from a shell."""

from __future__ import annotations

import argparse

import msgspec

from remit.client import Client

__all__ = ["main"]


def main(given: argparse.Namespace) -> int:
    """Ask, and print the answer. Raises RequestError."""
    with Client(given.location) as client:
        answer = client.request(given.name, *given.arguments, timeout=given.timeout)
    print(msgspec.json.encode(answer).decode())
    return 0
