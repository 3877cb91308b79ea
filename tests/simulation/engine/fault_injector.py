"""Simulated weather: the faults that befall a cluster; after it the sky is clear and everything must drain."""

from __future__ import annotations

from collections.abc import Callable

from engine.cluster import Cluster
from engine.fault_profile import DURATION, LONGEST
from engine.virtual_clock import Actor

__all__ = ["Weather"]


class Weather:
    """What befalls a cluster, as its climate says."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._world = cluster.world
        self._climate = cluster.climate
        self._begin()

    def _begin(self) -> None:
        climate, many = self._climate, len(self._cluster.clients)
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
        moment = self._world.now + self._world.random.expovariate(rate)
        if moment < DURATION:
            self._world.at(moment, self._befall, rate, fault)

    def _befall(self, rate: float, fault: Callable[[], None]) -> None:
        fault()
        self._again(rate, fault)

    def _while(self) -> float:
        """Return how long something lasts: not beyond the faults' end."""
        return min(self._world.random.random() * LONGEST, DURATION - self._world.now)

    def _told(self) -> bool:
        return self._world.random.random() < self._climate.told

    def _cut(self) -> None:
        path = self._world.random.choice(self._cluster.clients).end.path
        if path is not None:
            away = self._while() if self._world.random.random() < 0.2 else 0.001
            self._cluster.network.cut(path, tell=self._told(), away=away)

    def _crash(self) -> None:
        index = self._world.random.randrange(len(self._cluster.clients))
        former = self._cluster.clients[index]
        if self._world.random.random() < 0.3:
            former.leave()
        else:
            former.crash()
        self._cluster.clients[index] = former.successor()
        self._cluster.network.counts["client crashes"] += 1

    def _stall(self) -> None:
        """Three cases: 1. a server is not ticked; 2. nor has it a keeper; 3. some clients' threads are late."""
        case, until = self._world.random.randrange(3), self._world.now + self._while()
        server = self._cluster.servers[self._world.random.choice(self._cluster.hosts)]
        stalled: list[Actor] = [*self._world.random.choices(self._cluster.clients, k=10)] if case == 2 else []
        if server is not None and case == 0:
            server.deaf_until = until
        elif server is not None and case == 1:
            stalled.append(server)
        for actor in stalled:
            actor.stalled_until = max(actor.stalled_until, until)
        self._cluster.network.counts["stalls"] += 1

    def _part(self) -> None:
        share = self._world.random.random()
        until = self._world.now + self._while()
        self._cluster.network.counts["partitions"] += 1
        for client in self._cluster.clients:
            if client.end.path is not None and self._world.random.random() < share:
                client.end.path.blocked_until = until

    def _restart(self) -> None:
        host = self._world.random.choice(self._cluster.hosts)
        server = self._cluster.servers[host]
        if server is None:
            return
        self._cluster.network.counts["server restarts"] += 1
        if self._world.random.random() < 0.3:
            server.leave()
        else:
            server.crash()
        self._cluster.servers[host] = None
        share = self._world.random.choice((0.0, 0.7, 1.0))
        for client in list(host.clients):
            if client.path is not None and self._world.random.random() < share:
                self._cluster.network.cut(client.path, tell=self._told(), away=0.0)
        self._world.after(self._world.random.choice((0.001, self._while())), self._cluster.start, host)
