"""Simulator: thousands of clients and their servers in virtual time, on a network that does its worst.

``python -m engine.simulator --seed 7`` replays one seed exactly. The ends are the real ones, from
`remit._io.pump` down; only the links and the clock are not. What must hold for each seed: nothing that was confirmed
is lost, no server instance handles an event twice, the order of each client holds, and all drains in `DRAIN` virtual
seconds once the faults stop.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from engine.cluster import Cluster
from engine.fault_injector import Weather
from engine.fault_profile import DURATION, Climate
from engine.virtual_clock import SimulationFailed, World

__all__ = ["Report", "SimulationFailed", "main", "simulate"]


DRAIN: Final = 120.0
"""Virtual seconds after the last fault in which all must be confirmed."""
EVENTS: Final = ("questions", "jobs given", "publications heard", "signals")
"""What counts as an event beside what is emitted in streams."""
STEP: Final = 1.0
"""Virtual seconds between two looks at the whole."""


@dataclass
class Report:
    """What happened."""

    events: int = 0
    """Events emitted in both directions by those who lived to the end, or until they crashed."""
    handled: int = 0
    drained: float = 0.0
    """Virtual seconds from the last fault until all was confirmed; over several seeds, the longest."""
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, other: Report) -> None:
        """Count another seed in."""
        self.events += other.events
        self.handled += other.handled
        self.drained = max(self.drained, other.drained)
        self.counts += other.counts

    def __str__(self) -> str:
        faults = ", ".join(f"{count:,} {name}" for name, count in sorted(self.counts.items()))
        return f"{self.events:,} events, {self.handled:,} handled, drained within {self.drained:.0f} s; {faults}"


def simulate(seed: int, *, events: int, clients: int, storm: bool = False) -> Report:
    """Simulate one seed. Raises SimulationFailed, which says how to replay it."""
    world = World(seed)
    climate = Climate.of(world, storm=storm)
    callbacks = logging.getLogger("concurrent.futures")
    callbacks.addFilter(_nothing)  # What fails in a future's callback is kept by the world.
    product = logging.getLogger("remit")
    level = product.level
    product.setLevel(logging.CRITICAL + 1)  # Thousands of lost connections are no news here.
    try:
        cluster = Cluster(world, climate, events=events, clients=clients)
        Weather(cluster)
        return _run(world, cluster)
    except SimulationFailed as failure:
        failure.add_note(f"at {world.now:.6f} virtual seconds, with {climate}")
        failure.add_note(
            f"replay: make simulate SEED={seed} SEEDS=1 EVENTS={events} CLIENTS={clients}{' WEATHER=storm' * storm}"
        )
        raise
    finally:
        callbacks.removeFilter(_nothing)
        product.setLevel(level)


def _nothing(_: logging.LogRecord) -> bool:
    return False


def _run(world: World, cluster: Cluster) -> Report:
    while world.now < DURATION:
        world.run(min(world.now + STEP, DURATION))
        cluster.check()
    cluster.clear_up()
    while left := cluster.busy():
        if world.now > DURATION + DRAIN:
            raise SimulationFailed(f"{len(left)} not drained {DRAIN:.0f} s after the last fault: {'; '.join(left[:3])}")
        world.run(world.now + STEP)
        cluster.check()
    streams = cluster.book.streams.values()
    return Report(
        sum(stream.emitted for stream in streams) + sum(cluster.book.counts[each] for each in EVENTS),
        sum(stream.handled + stream.redelivered for stream in streams),
        world.now - DURATION,
        cluster.network.counts + cluster.book.counts,
    )


def main(arguments: Sequence[str] | None = None) -> int:
    """Simulate several seeds, one after the other; 1 if one of them failed."""
    parser = argparse.ArgumentParser(prog="python -m engine.simulator", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="the first seed (default: %(default)s)")
    parser.add_argument("--seeds", type=int, default=1, help="how many (default: %(default)s)")
    parser.add_argument("--events", type=int, default=1_000_000, help="from clients, for each (default: %(default)s)")
    parser.add_argument("--clients", type=int, default=2_000, help="for each seed (default: %(default)s)")
    parser.add_argument("--weather", choices=("mixed", "storm"), default="mixed", help="storm: the worst of everything")
    chosen = parser.parse_args(arguments)
    total, began, failed = Report(), time.perf_counter(), 0
    for seed in range(chosen.seed, chosen.seed + chosen.seeds):
        try:
            report = simulate(seed, events=chosen.events, clients=chosen.clients, storm=chosen.weather == "storm")
        except SimulationFailed as failure:
            failed += 1
            _say(f"seed {seed}: FAILED: {failure}", *failure.__notes__)
        else:
            total.add(report)
            _say(f"seed {seed}: {report}")
    seconds = time.perf_counter() - began
    _say(f"{chosen.seeds} seeds, {failed} failed: {total}", f"{total.events / seconds:,.0f} events/s, {seconds:.1f} s")
    return 1 if failed else 0


def _say(*lines: str) -> None:
    sys.stdout.write("\n".join(lines) + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
