"""Simulated weather: which faults a seed brings, and when; after it the sky is clear and everything must drain."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from remit.testing.simulation_actors import SimulatedClient, SimulatedServer
from remit.testing.simulation_ledger import Book
from remit.testing.simulation_network import Faults, Host, Network
from remit.testing.simulation_world import Actor, World

__all__ = ["DURATION", "Climate", "Cluster"]

DURATION: Final = 30.0
"""Virtual seconds in which events are emitted and faults happen."""
BURSTS: Final = (1, 2, 5, 20, 100, 250, 500, 1000)
"""Events emitted at once: one of these numbers, or what is left."""
FEWEST: Final = 8
"""Bursts in which a client emits at the least."""
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
    cuts: float
    partitions: float
    stalls: float
    client_crashes: float
    server_restarts: float
    told: float
    """Share of the cuts and restarts that a client is told of."""

    @staticmethod
    def of(world: World) -> Climate:
        """Return the climate that the seed brings."""
        choose, chance = world.random.choice, world.random.uniform
        return Climate(
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
            cuts=choose((0.0, 0.02, 0.2)),
            partitions=choose((0.0, 0.3)),
            stalls=choose((0.0, 1.0)),
            client_crashes=choose((0.0, 0.01)),
            server_restarts=choose((0.0, 0.1, 0.3)),
            told=choose((0.0, 0.5, 1.0)),
        )


class Cluster:
    """Hosts, their servers and their clients, and what befalls them."""

    def __init__(self, world: World, climate: Climate, *, events: int, clients: int) -> None:
        self.world = world
        self.climate = climate
        self.network = Network(world, climate.faults)
        self.book = Book(answering=0.2, answers=60)
        self.hosts = [Host(self.network) for _ in range(climate.servers)]
        self.servers: dict[Host, SimulatedServer | None] = {}
        for host in self.hosts:
            self._start(host)
        self.clients: list[SimulatedClient] = []
        self.largest = max(1, events // clients // FEWEST)
        for index in range(clients):
            client = self._client(self.hosts[index % len(self.hosts)])
            client.budget = events // clients + (index < events % clients)
            self.clients.append(client)
            world.at(world.random.uniform(0.0, DURATION / 10), self._burst, index)
        self._begin()

    # -- life --------------------------------------------------------------------------------------------------

    def _client(self, host: Host) -> SimulatedClient:
        return SimulatedClient(self.world, host, self.book, window=self.climate.window)

    def _burst(self, index: int) -> None:
        client = self.clients[index]
        count = min(client.budget, self.world.random.choice(BURSTS), self.largest)
        client.budget -= count
        client.emit(count)
        if client.budget:
            left = max(0.001, DURATION - self.world.now)
            pause = left * min(1.0, count / client.budget)
            self.world.after(self.world.random.random() * 2 * pause, self._burst, index)

    def _start(self, host: Host) -> None:
        climate = self.climate
        self.servers[host] = SimulatedServer(
            self.world, host, self.book, limit=climate.limit, window=climate.window, ttl=climate.ttl
        )

    # -- faults ------------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        climate, many = self.climate, len(self.clients)
        for rate, fault in (
            (climate.cuts * many, self._cut),
            (climate.client_crashes * many, self._crash),
            (climate.stalls, self._stall),
            (climate.partitions, self._part),
            (climate.server_restarts, self._restart),
        ):
            if rate:
                self._again(rate, fault)

    def _again(self, rate: float, fault: Callable[[], None]) -> None:
        moment = self.world.now + self.world.random.expovariate(rate)
        if moment < DURATION:
            self.world.at(moment, self._befall, rate, fault)

    def _befall(self, rate: float, fault: Callable[[], None]) -> None:
        fault()
        self._again(rate, fault)

    def _while(self) -> float:
        """Return how long something lasts: not beyond the faults' end."""
        return min(self.world.random.random() * LONGEST, DURATION - self.world.now)

    def _told(self) -> bool:
        return self.world.random.random() < self.climate.told

    def _cut(self) -> None:
        path = self.world.random.choice(self.clients).end.path
        if path is not None:
            away = self._while() if self.world.random.random() < 0.2 else 0.001
            self.network.cut(path, tell=self._told(), away=away)

    def _crash(self) -> None:
        index = self.world.random.randrange(len(self.clients))
        former = self.clients[index]
        if self.world.random.random() < 0.3:
            former.leave()
        else:
            former.crash()
        client = self.clients[index] = self._client(former.host)
        client.budget, former.budget = former.budget, 0
        self.network.counts["client crashes"] += 1

    def _stall(self) -> None:
        """Three cases: 1. a server is not ticked; 2. nor has it a keeper; 3. some clients' threads are late."""
        case, until = self.world.random.randrange(3), self.world.now + self._while()
        server = self.servers[self.world.random.choice(self.hosts)]
        stalled: list[Actor] = [*self.world.random.choices(self.clients, k=10)] if case == 2 else []
        if server is not None and case == 0:
            server.deaf_until = until
        elif server is not None and case == 1:
            stalled.append(server)
        for actor in stalled:
            actor.stalled_until = until
        self.network.counts["stalls"] += 1

    def _part(self) -> None:
        share = self.world.random.random()
        until = self.world.now + self._while()
        self.network.counts["partitions"] += 1
        for client in self.clients:
            if client.end.path is not None and self.world.random.random() < share:
                client.end.path.blocked_until = until

    def _restart(self) -> None:
        host = self.world.random.choice(self.hosts)
        server = self.servers[host]
        if server is None:
            return
        self.network.counts["server restarts"] += 1
        if self.world.random.random() < 0.3:
            server.leave()
        else:
            server.crash()
        self.servers[host] = None
        share = self.world.random.choice((0.0, 0.7, 1.0))
        for client in list(host.clients):
            if client.path is not None and self.world.random.random() < share:
                self.network.cut(client.path, tell=self._told(), away=0.0)
        self.world.after(self.world.random.choice((0.001, self._while())), self._start, host)

    # -- the end -----------------------------------------------------------------------------------------------

    def clear_up(self) -> None:
        """Let no more faults happen."""
        faults = self.climate.faults
        faults.loss = faults.duplication = faults.reorder = 0.0

    def check(self) -> None:
        """Compare what is confirmed with what was handled, at the servers' ends."""
        for server in self.servers.values():
            if server is not None:
                server.check()

    def busy(self) -> list[str]:
        """Say what has not drained."""
        left = [str(client) for client in self.clients if not client.idle]
        for server in self.servers.values():
            if server is not None:
                left += server.busy({client.machine.session.id for client in self.clients})
        return left
