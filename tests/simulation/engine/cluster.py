"""Simulated cluster: servers, brokers and pairs with their clients, and what these do while the weather lasts."""

from __future__ import annotations

from engine.broker import SimulatedBroker
from engine.client import SimulatedClient
from engine.delivery_oracle import Book
from engine.fault_profile import DURATION, Climate
from engine.job_actors import JobClient, SimulatedWorker
from engine.network import Host, Network
from engine.pair_actors import SimulatedGuest, SimulatedOwner
from engine.plain_actors import PlainClient, PlainServer
from engine.server import SimulatedServer
from engine.virtual_clock import World

__all__ = ["Cluster"]


BURSTS = (1, 2, 5, 20, 100, 250, 500, 1000)
"""Events emitted at once: one of these numbers, or what is left."""
FEWEST = 8
"""Bursts in which a client emits at the least."""
GUESTS = 3
"""Who want the same seat."""
QUESTION = 0.3
"""Share of a client's bursts after which it asks something."""
NEWS = 100
"""Publications of one server at the most."""
STATEMENT = 3.0
"""Seconds between two publications once all is calm."""


class Cluster:
    """All ends of a simulation, and what they are there for."""

    def __init__(self, world: World, climate: Climate, *, events: int, clients: int) -> None:
        self.world = world
        self.climate = climate
        self.network = Network(world, climate.faults)
        self.book = Book(answering=0.2, answers=60)
        self.book.lease = climate.lease
        self.book.replace = self._replace
        self.hosts: list[Host] = []
        self.servers: dict[Host, SimulatedServer | None] = {}
        self.clients: list[SimulatedClient] = []
        self._kinds: dict[Host, type[SimulatedServer]] = {}
        self._states_at = 0.0
        self._populate(clients)
        self._employ(events)

    # -- who there is ------------------------------------------------------------------------------------------

    def _populate(self, clients: int) -> None:
        plain = [self._host(PlainServer) for _ in range(self.climate.servers)]
        broker, workers = self._host(SimulatedBroker), max(2, clients // 20)
        owners = [self._host(SimulatedOwner) for _ in range(max(1, clients // 100))]
        self.clients += [self._client(SimulatedWorker, broker) for _ in range(workers)]
        self.clients += [self._client(JobClient, broker) for _ in range(workers)]
        self.clients += [self._client(SimulatedGuest, owner) for owner in owners for _ in range(GUESTS)]
        rest = max(1, clients - len(self.clients))
        self.clients += [self._client(PlainClient, plain[index % len(plain)]) for index in range(rest)]

    def _host(self, kind: type[SimulatedServer]) -> Host:
        host = Host(self.network)
        self.hosts.append(host)
        self._kinds[host] = kind
        self.start(host)
        return host

    def start(self, host: Host) -> None:
        """Begin to listen at a host."""
        climate = self.climate
        self.servers[host] = self._kinds[host](
            self.world, host, self.book, limit=climate.limit, window=climate.window, ttl=climate.ttl
        )

    def _client(self, kind: type[SimulatedClient], host: Host) -> SimulatedClient:
        return kind(self.world, host, self.book, window=self.climate.window)

    def _replace(self, former: SimulatedClient) -> None:
        """Another one comes in the place of one that ended by itself."""
        self.clients[self.clients.index(former)] = former.successor()

    # -- what they do ------------------------------------------------------------------------------------------

    def _employ(self, events: int) -> None:
        emitting = [index for index, client in enumerate(self.clients) if isinstance(client, PlainClient)]
        asking = [index for index, client in enumerate(self.clients) if isinstance(client, JobClient)]
        self._share(emitting, events - events // 20)
        self._share(asking, events // 20)
        for host in self.hosts:
            if self._kinds[host] is PlainServer:
                self._often(NEWS, self._publish, host)
            elif self._kinds[host] is SimulatedOwner:
                self._often(NEWS, self._signal, host)

    def _share(self, indices: list[int], events: int) -> None:
        for order, index in enumerate(indices):
            client = self.clients[index]
            assert isinstance(client, PlainClient | JobClient)
            client.budget = events // len(indices) + (order < events % len(indices))
            largest = max(1, client.budget // FEWEST)
            self.world.at(self.world.random.uniform(0.0, DURATION / 10), self._burst, index, largest)

    def _burst(self, index: int, largest: int) -> None:
        client, random = self.clients[index], self.world.random
        assert isinstance(client, PlainClient | JobClient)
        count = min(client.budget, random.choice(BURSTS), largest)
        client.budget -= count
        client.speak(count)
        if isinstance(client, PlainClient) and random.random() < QUESTION:
            client.asker.ask("question")
        if client.budget:
            left = max(0.001, DURATION - self.world.now)
            pause = left * min(1.0, count / client.budget)
            self.world.after(random.random() * 2 * pause, self._burst, index, largest)

    def _often(self, times: int, action: object, host: Host) -> None:
        assert callable(action)
        for _ in range(times):
            self.world.at(self.world.random.uniform(0.0, DURATION), action, host)

    def _publish(self, host: Host) -> None:
        server = self.servers[host]
        if isinstance(server, PlainServer):
            server.newsroom.publish(self.world.random.choice(BURSTS[:5]))

    def _signal(self, host: Host) -> None:
        server = self.servers[host]
        if isinstance(server, SimulatedOwner):
            server.speak()

    # -- the end -----------------------------------------------------------------------------------------------

    def clear_up(self) -> None:
        """Let no more faults happen."""
        faults = self.climate.faults
        faults.loss = faults.duplication = faults.reorder = 0.0
        self.book.calm = True
        for server in self.servers.values():
            if server is not None:
                server.calm()

    def check(self) -> None:
        """Compare what the ends know with what happened."""
        for client in self.clients:
            client.check()
        for server in self.servers.values():
            if server is not None:
                server.check()

    def busy(self) -> list[str]:
        """Say what has not drained."""
        left = [str(client) for client in self.clients if not client.idle]
        sessions = {client.machine.session.id for client in self.clients}
        for server in self.servers.values():
            if server is not None:
                left += server.busy(sessions)
        left += self._behind()
        return left

    def _behind(self) -> list[str]:
        """Say who has not heard the last news; publish once more, if that was long ago: gaps show then."""
        behind = []
        for client in self.clients:
            server = self.servers[client.host]
            reader = client.reader if isinstance(client, PlainClient) else None
            if reader is not None and isinstance(server, PlainServer) and not reader.up_to_date(server.newsroom):
                behind.append(f"{client} is behind the news")
        if behind and self.world.now - self._states_at > STATEMENT:
            self._states_at = self.world.now
            for server in self.servers.values():
                if isinstance(server, PlainServer):
                    server.newsroom.publish(1)
        return behind
