"""Broker: `remit broker`: a broker as a process of its own, until a signal ends it."""

from __future__ import annotations

import argparse
import sys

from remit.broker import Broker
from remit.cli.signals import stopped_by_signals

__all__ = ["main"]


def main(given: argparse.Namespace) -> int:
    """Run a broker; print what it counted at its end."""
    with Broker(given.location, lease=given.lease, max_attempts=given.attempts) as broker:
        with stopped_by_signals(broker.stop):
            print(f"broker on {broker.location}", file=sys.stderr, flush=True)
            broker.run()
        print(" ".join(f"{name}={count}" for name, count in broker.stats().items()), file=sys.stderr)
    return 0
