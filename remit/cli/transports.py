"""Transports: `remit transports`: what is installed, and what keeps any of it from use."""

from __future__ import annotations

import argparse

from remit.errors import RemitError
from remit.plugins import find_transport, installed_transports

__all__ = ["main"]


def main(given: argparse.Namespace) -> int:
    """Print a row for each claim of a scheme."""
    rows = [("SCHEME", "DISTRIBUTION", "VERSION", "STATE")]
    for claim in installed_transports():
        state = claim.error or _state(claim.scheme)
        rows.append((claim.scheme, claim.distribution or "(this process)", claim.version or "-", state))
    widths = [max(len(row[column]) for row in rows) for column in range(3)]
    for *cells, state in rows:
        print("  ".join((*(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)), state)))
    return 0


def _state(scheme: str) -> str:
    """Load one transport, which disturbs no other, and say what came of it."""
    try:
        find_transport(scheme)
    except RemitError as error:
        return f"broken: {' '.join(str(error).split())}"
    return "ready"
