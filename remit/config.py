"""Config: which location and backend."""

from __future__ import annotations

from remit.location import Location

__all__ = ["resolve"]


def resolve(where: str | Location | None = None) -> Location:
    """Return the location meant."""
    return where if isinstance(where, Location) else Location(where or "")


def private_location(hint: str) -> Location:
    """Return a fresh private location."""
    import os
    import secrets
    import tempfile

    return Location(f"unix://{tempfile.gettempdir()}/{hint}-{os.getpid()}-{secrets.token_hex(4)}.sock")
