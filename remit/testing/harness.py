"""Harness of the conformance suite: fresh locations, relays between two ends, and disruptions."""

from __future__ import annotations

import contextlib
import enum
import socket
import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import Any, Final

from remit.errors import BadLocation
from remit.location import Location
from remit.options import resolve_options
from remit.plugins import find_transport
from remit.runtime_dirs import fresh_name
from remit.transport import Transport

JOIN_TIMEOUT_S: Final = 5.0
DEADLINE_S: Final = 20.0
PATIENCE_S: Final = 2.0


class Relay:
    """Forwards bytes between the clients of its ``location`` and a server at a TCP port or Unix socket.

    It does not see connections that the two ends establish in other ways. Raises OSError.
    """

    def __init__(self, server: Location) -> None:
        self._target: str | tuple[str, int]
        if server.port is None:
            self._family, self._target = socket.AF_UNIX, server.path
            self.location = server.replace(path=f"{server.path}-relay")
            self._listener = socket.socket(self._family)
            self._listener.bind(self.location.path)
            self._listener.listen()
        else:
            here, self._family = ("::1", socket.AF_INET6) if ":" in server.host else ("127.0.0.1", socket.AF_INET)
            self._target = server.host, server.port
            self._listener = socket.create_server((here, 0), family=self._family)
            # Keep the name "localhost", which a TLS certificate may contain.
            host = server.host if server.host == "localhost" else here
            self.location = server.replace(host=host, port=self._listener.getsockname()[1])
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self.passed = 0
        """Connections forwarded so far."""
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """Shut down all current connections; new ones are accepted."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """Stop reading and forwarding, but keep the connections open."""
        self._flowing.clear()

    def close(self) -> None:
        """Shut down all connections and threads, and free the location."""
        self._closed = True
        # A stalled relay must let its threads run, to see the end of their sockets.
        self._flowing.set()
        # shutdown() ends a blocked accept() in the other thread; close() alone does not on Linux.
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        # First the accepting thread, since it may add connections until it has ended.
        self._threads[0].join(JOIN_TIMEOUT_S)
        self.cut()
        for thread in self._threads:
            thread.join(JOIN_TIMEOUT_S)
        self._listener.close()
        if self.location.port is None:
            Path(self.location.path).unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = socket.socket(self._family)
            if server.connect_ex(self._target) == 0:
                self.passed += 1
                self._join(client, server)
            else:
                client.close()
                server.close()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        # The lock orders this with cut(), which another thread calls, and with the end of a connection: a socket that
        # was closed there would have a descriptor that may belong to another file by now.
        with self._lock:
            self._connections |= {client, server}
        both = threading.Barrier(2)
        for source, sink in ((client, server), (server, client)):
            thread = threading.Thread(target=self._pass, args=(source, sink, both), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, both: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(64 * 1024):
                self._flowing.wait()
                sink.sendall(data)
        # Forward the end of one direction only: the other one may still transfer data.
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        # The thread of the other direction still uses both sockets: close them only after it, too, has finished.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()
        with self._lock:
            self._connections.discard(source)
            source.close()


class Disruption(enum.Enum):
    """Faults that a harness may inject; the value completes "this harness cannot ..."."""

    CUT_LINK = "cut a connection between two ends that are both alive"
    STALL_PEER = "keep a connection open and let nothing more pass"
    RESTART_SERVER = "restart the backend's own server"


NO_DISRUPTIONS: Final[Mapping[Disruption, Callable[[], None]]] = MappingProxyType({})


class Harness:
    """Base class of the harness that the suite runs with: set ``transport``, and return a fresh `location`.

    Checks that need another process pickle the harness with cloudpickle.
    """

    transport: Transport
    """The transport to check."""
    deadline: float = DEADLINE_S
    """Seconds for one check."""
    patience: float = PATIENCE_S
    """Seconds for which a capability that is not declared is tried."""
    disruptions: Mapping[Disruption, Callable[[], None]] = NO_DISRUPTIONS
    """Functions that inject the supported faults, and return when that is done."""

    def location(self) -> Location:
        """Return a location that no server has used before."""
        raise NotImplementedError

    def reach(self, bound: Location, *, breakable: bool = False) -> Location:
        """Return the location at which a client connects to the server whose link has the location ``bound``.

        ``breakable`` is set if the check will inject one of the `disruptions`.
        """
        return bound

    def finish(self) -> None:
        """Release the resources of a finished check."""


class UrlHarness(Harness):
    """Harness for the transport of a URL, from which it derives fresh locations.

    If the transport has the option ``prefix``, each location gets a new one. A URL with a port is not changed, so use
    port 0. Any other URL gets a new path or name. With ``relayed``, a `Relay` connects the two ends of each check that
    cuts or stalls their connection. Raises LocationError, PluginError.
    """

    def __init__(
        self,
        url: str | Location,
        *,
        deadline: float = DEADLINE_S,
        patience: float = PATIENCE_S,
        disruptions: Mapping[Disruption, Callable[[], None]] = NO_DISRUPTIONS,
        relayed: bool = False,
    ) -> None:
        given = url if isinstance(url, Location) else Location(url)
        self.transport = find_transport(given.scheme)
        _, self.base = resolve_options(given, self.transport.options, {})
        self.deadline = deadline
        self.patience = patience
        self.relayed = relayed
        self._relays: list[Relay] = []
        acts = {Disruption.CUT_LINK: Relay.cut, Disruption.STALL_PEER: Relay.stall} if relayed else {}
        self.disruptions = {kind: partial(self._call_relays, act) for kind, act in acts.items()} | dict(disruptions)
        self.location()  # Fail here, and not in the first check, if the URL allows no fresh locations.

    def location(self) -> Location:
        """Return a fresh location. Raises BadLocation if none can be derived from the URL."""
        base = self.base
        name = fresh_name("c")  # A short hint, because a socket's path is limited to 107 bytes.
        if "prefix" in self.transport.options:
            return base.replace(options=dict(base.options) | {"prefix": name})
        if base.port is not None:
            return base
        if base.path.strip("/"):
            return base.replace(path=f"{base.path.rstrip('/')}-{name}")
        if base.host:
            return base.replace(host=f"{base.host}-{name}")
        raise BadLocation(f"{base} has neither a port, nor a path, nor a name; write one of them")

    def reach(self, bound: Location, *, breakable: bool = False) -> Location:
        """Return ``bound``, or the location of a relay to it."""
        if not (self.relayed and breakable):
            return bound
        self._relays.append(Relay(bound))
        return self._relays[-1].location

    def finish(self) -> None:
        """Close the relays."""
        while self._relays:
            self._relays.pop().close()

    def _call_relays(self, act: Callable[[Relay], None]) -> None:
        for relay in self._relays:
            act(relay)

    def __getstate__(self) -> dict[str, Any]:
        # The other process looks up the transport itself. Faults are injected by this process.
        return self.__dict__ | {"transport": None, "disruptions": {}, "_relays": []}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        self.transport = find_transport(self.base.scheme)
