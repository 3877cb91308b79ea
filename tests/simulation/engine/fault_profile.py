"""Simulated climate: what a seed is like: how often what goes wrong."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Final

from engine.network import Faults
from engine.virtual_clock import World

__all__ = ["DURATION", "LONGEST", "Climate"]


DURATION: Final = 30.0
"""Virtual seconds in which something is emitted and faults happen."""
LONGEST: Final = 4.0
"""Virtual seconds that a stall, a partition or a server's absence lasts at the most."""


@dataclass(frozen=True, slots=True)
class Climate:
    """What a seed is like. Rates are faults per virtual second; those of clients are per client."""

    faults: Faults
    servers: int
    window: int
    limit: int
    ttl: float
    lease: float
    cuts: float
    partitions: float
    stalls: float
    client_crashes: float
    server_restarts: float
    told: float
    """Share of the cuts and restarts that a client is told of."""

    @staticmethod
    def of(world: World, *, storm: bool = False) -> Climate:
        """Return the climate that the seed brings; with ``storm`` the worst of everything."""
        choose, chance = world.random.choice, world.random.uniform
        climate = Climate(
            Faults(
                loss=choose((0.0, 0.02, chance(0.0, 0.3), 0.3)),
                duplication=choose((0.0, chance(0.0, 0.1), 0.1)),
                reorder=choose((0.0, 0.1, 0.3)),
                late=choose((0.005, 0.05, 3.0)),
                latency=choose((0.0002, 0.002, 0.05)),
                capacity=choose((4, 64, 1000)),
            ),
            servers=choose((1, 1, 2, 3)),
            window=choose((200, 1000, 16 * 1024)),
            limit=choose((500, 1 << 30)),
            ttl=choose((2.0, 60.0)),
            lease=choose((1.0, 3.0, 10.0)),
            cuts=choose((0.0, 0.02, 0.2)),
            partitions=choose((0.0, 0.3)),
            stalls=choose((0.0, 1.0)),
            client_crashes=choose((0.0, 0.01)),
            server_restarts=choose((0.0, 0.1, 0.3)),
            told=choose((0.0, 0.5, 1.0)),
        )
        if not storm:
            return climate
        faults = replace(climate.faults, loss=0.3, duplication=0.1, reorder=0.3)
        return replace(
            climate, faults=faults, cuts=0.02, partitions=0.3, stalls=1.0, client_crashes=0.01, server_restarts=0.1
        )
