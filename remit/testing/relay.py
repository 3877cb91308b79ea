"""Relay: what stands between a client and its server, and can cut or stall their connection."""

from __future__ import annotations

import contextlib
import socket
import threading
from pathlib import Path
from typing import Final

from remit.location import Location

__all__ = ["Relay"]

PIECE: Final = 64 * 1024
"""Bytes passed on in one go."""
ENDING: Final = 5.0
"""Seconds for the relay's threads to end."""


class Relay:
    """Passes bytes on between whoever connects to its ``location`` and a server behind a TCP port or a socket's file.

    Connections that the two ends make between them in other ways go past it. Raises OSError.
    """

    def __init__(self, server: Location) -> None:
        self._server = server
        self._listener = _socket(server)
        if server.port is None:
            path = f"{server.path}-relay"
            self._listener.bind(path)
            self.location = server.replace(path=path)
        else:
            here = "::1" if ":" in server.host else "127.0.0.1"
            self._listener.bind((here, 0))
            # The name stays where it means the same: a certificate may be made out to it.
            host = server.host if server.host == "localhost" else here
            self.location = server.replace(host=host, port=self._listener.getsockname()[1])
        self._listener.listen()
        self._lock = threading.Lock()
        self._connections: set[socket.socket] = set()
        self._flowing = threading.Event()
        self._flowing.set()
        self._closed = False
        self.passed = 0
        """Connections that came this way."""
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def cut(self) -> None:
        """End all connections there are; new ones may be made."""
        with self._lock:
            for connection in self._connections:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)

    def stall(self) -> None:
        """From now on pass nothing on, and read nothing."""
        self._flowing.clear()

    def close(self) -> None:
        """End all, and give everything back."""
        self._closed = True
        self._flowing.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._threads[0].join(ENDING)
        self.cut()
        for thread in self._threads:
            thread.join(ENDING)
        self._listener.close()
        if self.location.port is None:
            Path(self.location.path).unlink(missing_ok=True)

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            server = _socket(self._server)
            if server.connect_ex(_address(self._server)) == 0:
                self.passed += 1
                self._join(client, server)
            else:
                client.close()
                server.close()

    def _join(self, client: socket.socket, server: socket.socket) -> None:
        with self._lock:
            self._connections |= {client, server}
        both = threading.Barrier(2)
        for source, sink in ((client, server), (server, client)):
            thread = threading.Thread(target=self._pass, args=(source, sink, both), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _pass(self, source: socket.socket, sink: socket.socket, both: threading.Barrier) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(PIECE):
                self._flowing.wait()
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)
        # Neither is closed while the other direction may still use it.
        with contextlib.suppress(threading.BrokenBarrierError):
            both.wait()
        with self._lock:
            self._connections.discard(source)
            source.close()


def _address(location: Location) -> str | tuple[str, int]:
    return location.path if location.port is None else (location.host, location.port)


def _socket(location: Location) -> socket.socket:
    if location.port is None:
        return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    return socket.socket(socket.AF_INET6 if ":" in location.host else socket.AF_INET, socket.SOCK_STREAM)
