"""Places over Redis: sockets, databases and prefixes, TLS, and what cannot be one."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import ssl
import subprocess
import threading
from pathlib import Path

import pytest
from redis_ends import DEADLINE, arrive, pair, take, transport, works
from redis_server import Redis

from remit.errors import BadLocation, TransportError
from remit.location import Location
from remit.transport import Down, Frame


def test_a_unix_socket_and_each_database_and_prefix_are_locations_of_their_own(redis: Redis) -> None:
    """Channels know no databases, but locations do."""
    addresses = [
        f"redis+unix://{redis.path}",
        f"redis+unix://{redis.path}?db=3",
        f"redis://127.0.0.1:{redis.port}/4",
        f"redis://127.0.0.1:{redis.port}/0?prefix=other",
    ]
    ends = [pair(Location(address)) for address in addresses]
    for server, client, peer in ends:
        works(server, client, peer)
    for server, client, _ in ends:
        server.close(1)
        assert arrive(client, Down)[1] == []
        client.close(1)


class Gate(threading.Thread):
    """TLS in front of a Redis, as managed ones have it."""

    def __init__(self, folder: Path, port: int) -> None:
        super().__init__(daemon=True)
        self.certificate, key = folder / "certificate.pem", folder / "key.pem"
        command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-subj", "/CN=localhost"]
        command += ["-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(self.certificate)]
        subprocess.run(command, check=True, capture_output=True)
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self._context.load_cert_chain(self.certificate, key)
        self._behind = port
        self._loop = asyncio.new_event_loop()
        self._ended = asyncio.Event()
        self._ready = threading.Event()
        self.port = 0

    def __enter__(self) -> Gate:
        self.start()
        assert self._ready.wait(DEADLINE)
        return self

    def __exit__(self, *_: object) -> None:
        self._loop.call_soon_threadsafe(self._ended.set)
        self.join()

    def run(self) -> None:
        with contextlib.closing(self._loop):
            self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        server = await asyncio.start_server(self._carry, "127.0.0.1", 0, ssl=self._context)
        self.port = server.sockets[0].getsockname()[1]
        self._ready.set()
        await self._ended.wait()
        server.close()
        carried = asyncio.all_tasks() - {asyncio.current_task()}
        if carried:
            await asyncio.wait(carried, timeout=DEADLINE)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._behind)
        await asyncio.gather(self._copy(reader, inner_writer), self._copy(inner_reader, writer))

    async def _copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
        writer.close()
        with contextlib.suppress(OSError):
            await writer.wait_closed()


@pytest.mark.skipif(shutil.which("openssl") is None, reason="no openssl here to make a certificate with")
def test_tls_carries_all_and_trusts_only_whom_it_is_told_to(redis: Redis, tmp_path: Path) -> None:
    """Records, which hide bytes from poll, are no trap; an unknown certificate is raised by both ends."""
    with Gate(tmp_path, redis.port) as gate:
        location = Location(f"rediss://localhost:{gate.port}/0")
        for open_link in (transport.bind, transport.connect):
            with pytest.raises(TransportError, match="'ca'"):
                open_link(location)
        server, client, peer = pair(location.replace(options={"ca": str(gate.certificate)}))
        works(server, client, peer)
        frames = [bytes([number % 256]) * (number * 997 % 50_000) for number in range(200)]
        for frame in frames:
            take(client, frame)
        for frame in frames:
            assert arrive(server, Frame, client)[0] == Frame(peer, frame)
        client.close(1)
        assert arrive(server, Down)[0].peer == peer
        server.close(1)


@pytest.mark.parametrize(
    "address",
    [
        "redis://localhost/zero",
        "redis://localhost/0?db=1",
        "redis://localhost?ca=/etc/hosts",
        "rediss://localhost?ca=/no/such/file",
        "redis+unix://localhost/redis.sock",
        "redis+unix://",
        "redis://localhost?lease=0",
        "redis://localhost?max_frame=64MiB",
        "redis://localhost?prefix=",
        "redis://localhost?db=-1",
    ],
)
def test_a_wrong_location_is_refused_before_redis_is_asked(address: str) -> None:
    """A typing error is not looked for on the network."""
    with pytest.raises(BadLocation):
        transport.connect(Location(address))
