"""What is special to Redis: it dies and comes back, its lease, its fences, garbage, slowness, forks."""

from __future__ import annotations

import asyncio
import contextlib
import os
import select
import shutil
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from redis_server import RedisServer

from remit.errors import BadLocation, ForkedLinkError, LocationInUse, TransportError
from remit.location import Location
from remit.transport import SERVER, Down, Frame, Link, Sent, Up

remit_redis = pytest.importorskip("remit_redis")
transport = remit_redis.remit_transport("redis")

DEADLINE = 20.0
"""Seconds after which what should happen has not."""


class Redis(RedisServer):
    """A server that also listens on a Unix socket, and that a test can talk to past the plugin."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "redis.sock"
        super().__init__("--unixsocket", str(self.path))

    def say(self, *words: object) -> Any:
        """Send one command on a connection of its own, and return the raw answer."""
        import hiredis

        pack: Callable[[tuple[str, ...]], bytes] = hiredis.pack_command  # type: ignore[assignment]
        reader = hiredis.Reader()
        with socket.create_connection(("127.0.0.1", self.port)) as connection:
            connection.sendall(pack(tuple(str(word) for word in words)))
            while (answer := reader.gets()) is False:
                reader.feed(connection.recv(65536))
        return answer

    @property
    def location(self) -> Location:
        return Location(self.url)


@pytest.fixture
def absent(tmp_path: Path) -> Iterator[Redis]:
    """A Redis that has not been started yet."""
    server = Redis(tmp_path)
    yield server
    server.stop()


@pytest.fixture
def redis(absent: Redis) -> Redis:
    absent.start()
    return absent


def take(link: Link, frame: bytes) -> None:
    """Send one frame as soon as there is room."""
    deadline = time.monotonic() + DEADLINE
    while link.send(SERVER, frame) is not Sent.ACCEPTED:
        assert time.monotonic() < deadline, "no room"
        link.wait(0.1)


def until(fact: Callable[[], object]) -> None:
    deadline = time.monotonic() + DEADLINE
    while not fact():
        assert time.monotonic() < deadline, fact
        time.sleep(0.002)


def arrive(link: Link, kind: type, *others: Link) -> tuple[Any, list[Any]]:
    """Receive until something of a kind arrives; return it and what came before. The others are kept alive."""
    before: list[Any] = []
    deadline = time.monotonic() + DEADLINE
    while True:
        arrival = link.receive()
        if isinstance(arrival, kind):
            return arrival, before
        if arrival is not None:
            before.append(arrival)
            continue
        assert time.monotonic() < deadline, f"no {kind.__name__}, but {before}"
        for other in others:
            other.wait(0.001)
        link.wait(0.005 if others else 0.05)


def pair(location: Location) -> tuple[Any, Any, Any]:
    """Return a server's link, a client's link, and the client's token, all up."""
    server = transport.bind(location)
    client = transport.connect(location)
    arrive(client, Up)
    return server, client, arrive(server, Up)[0].peer


def works(server: Link, client: Link, peer: Any) -> None:
    """Both directions carry a frame."""
    assert client.send(SERVER, b"there") is Sent.ACCEPTED
    assert arrive(server, Frame)[0] == Frame(peer, b"there")
    assert server.send(peer, b"back") is Sent.ACCEPTED
    assert arrive(client, Frame)[0] == Frame(SERVER, b"back")


def test_importing_the_plugin_imports_no_backend() -> None:
    """A program that uses another transport does not pay for this one."""
    code = "import remit_redis, sys; print(sorted({'redis', 'hiredis', 'ssl'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_redis_dies_in_mid_stream_and_comes_back(redis: Redis) -> None:
    """Both ends notice, what arrived is a prefix of what was sent, and both come up again with a new token."""
    server, client, peer = pair(redis.location)
    accepted = 0
    while accepted < 20_000:
        if accepted == 10_000:
            redis.kill()
        if client.send(SERVER, b"%d" % accepted) is not Sent.ACCEPTED:
            break
        accepted += 1
    assert arrive(client, Down)[0].peer == SERVER
    down, before = arrive(server, Down)
    assert down.peer == peer
    assert [frame.data for frame in before] == [b"%d" % number for number in range(len(before))]
    assert client.send(SERVER, b"lost") is Sent.GONE
    assert server.send(peer, b"lost") is Sent.GONE

    redis.start()
    arrive(client, Up, server)
    again, between = arrive(server, Up)
    assert again.peer != peer
    assert between == []
    works(server, client, again.peer)
    server.close(1)
    client.close(1)


def test_a_client_may_be_there_first(absent: Redis) -> None:
    """Redis and the server may both be started after the client."""
    redis = absent
    client = transport.connect(redis.location)
    assert client.send(SERVER, b"early") is Sent.GONE
    redis.start()
    client.wait(0.05)
    server = transport.bind(redis.location)
    arrive(client, Up)
    works(server, client, arrive(server, Up)[0].peer)
    client.close(1)
    server.close(1)


def test_bind_without_redis_says_what_to_check(absent: Redis) -> None:
    """A server cannot begin without Redis; its password is not told."""
    with pytest.raises(TransportError, match="check that redis-server runs") as caught:
        transport.bind(Location(f"redis://me:secret@127.0.0.1:{absent.port}"))
    assert "secret" not in repr(caught.value)


def test_a_wrong_password_is_raised_and_not_told(redis: Redis) -> None:
    """Neither end waits for what cannot come."""
    redis.say("CONFIG", "SET", "requirepass", "right")
    host = f"127.0.0.1:{redis.port}"
    for open_link in (transport.bind, transport.connect):
        with pytest.raises(TransportError, match="password") as caught:
            open_link(Location(f"redis://:secret@{host}"))
        assert "secret" not in str(caught.value)
        with pytest.raises(TransportError, match="NOAUTH"):
            open_link(Location(f"redis://{host}"))
    server, client, peer = pair(Location(f"redis://:right@{host}"))
    works(server, client, peer)
    server.close(1)
    client.close(1)


def test_a_user_needs_no_more_than_the_readme_says(redis: Redis) -> None:
    """The least privileges are enough, and with less the error points to them."""
    text = (Path(__file__).parents[2] / "plugins" / "redis" / "README.md").read_text()
    rules = next(line for line in text.splitlines() if line.startswith("ACL SETUSER")).split()
    assert redis.say(*rules) == b"OK"
    location = Location(f"redis://events:secret@127.0.0.1:{redis.port}/0")
    server, client, peer = pair(location)
    works(server, client, peer)
    client.close(1)
    server.close(1)
    redis.say(*rules, "-eval", "-get")
    for open_link in (transport.bind, transport.connect):
        with pytest.raises(TransportError, match=r"NOPERM.*README"):
            open_link(location)


def test_a_host_that_takes_connections_and_is_silent_blocks_nobody(redis: Redis) -> None:
    """Connecting returns, the verbs go on, and closing leaves no thread behind."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        client = transport.connect(Location(f"redis://127.0.0.1:{silent.getsockname()[1]}"))
        assert client.receive() is None
        assert client.send(SERVER, b"") is Sent.GONE
        client.wait(0.01)
        client.close(1)
    until(lambda: all(thread.name != "remit-redis-dial" for thread in threading.enumerate()))


@pytest.mark.parametrize("end", ["server", "client"])
def test_a_killed_connection_is_a_down_and_an_up(redis: Redis, end: str) -> None:
    """Pub/sub forgets: whoever loses its connection has lost frames, and both ends must know."""
    server, client, peer = pair(redis.location)
    names = {
        "server": redis.say("PUBSUB", "CHANNELS", "*:hub:*"),
        "client": redis.say("PUBSUB", "CHANNELS", "*:inbox:*"),
    }
    assert len(names[end]) == 1
    # The server connected first: its connection has the lower id.
    ids = sorted(
        int(line.split()[0][3:]) for line in redis.say("CLIENT", "LIST").decode().splitlines() if " name=remit " in line
    )
    redis.say("CLIENT", "KILL", "ID", ids[end == "client"])
    if end == "server":  # it comes back before the client looks
        assert arrive(server, Down)[0].peer == peer
        until(lambda: [server.wait(0.01), redis.say("PUBSUB", "CHANNELS", "*:hub:*")][1])
        assert arrive(client, Down)[0].peer == SERVER
    else:
        assert arrive(client, Down)[0].peer == SERVER
        assert arrive(server, Down, client)[0].peer == peer
    arrive(client, Up, server)
    again = arrive(server, Up, client)[0].peer
    assert again != peer
    works(server, client, again)
    server.close(1)
    client.close(1)


CHILD = """
import signal, sys
from remit.location import Location
from remit.transport import Up
from remit_redis import remit_transport
link = getattr(remit_transport("redis"), sys.argv[1])(Location(sys.argv[2]))
while sys.argv[1] == "connect" and not isinstance(link.receive(), Up):
    link.wait(1.0)
print("up", flush=True)
signal.pause()
"""


@contextlib.contextmanager
def child(verb: str, location: Location, beside: Link | None = None) -> Iterator[subprocess.Popen[str]]:
    """Another process with an end that is up and then does nothing. ``beside`` is kept alive until then."""
    process = subprocess.Popen([sys.executable, "-c", CHILD, verb, location.url], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    with process.stdout:
        if beside is not None:
            until(lambda: beside.wait(0.01) or select.select([process.stdout], [], [], 0)[0])
        assert process.stdout.readline() == "up\n"
        yield process
        process.kill()
        process.wait()


def test_a_killed_client_is_noticed_without_sending(redis: Redis) -> None:
    """The server's end sees its peers go by itself."""
    server = transport.bind(redis.location.replace(options={"lease": "300ms"}))
    with child("connect", redis.location, beside=server) as process:
        peer = arrive(server, Up)[0].peer
        process.kill()
        assert arrive(server, Down)[0].peer == peer
    assert server.send(peer, b"") is Sent.GONE
    server.close(1)


def test_a_killed_client_is_noticed_when_redis_finds_no_reader(redis: Redis) -> None:
    """Sending to it ends in Down long before the server would have looked."""
    server = transport.bind(redis.location.replace(options={"lease": "1000s"}))
    with child("connect", redis.location) as process:
        peer = arrive(server, Up)[0].peer
        process.kill()
        process.wait()
        until(lambda: not redis.say("PUBSUB", "CHANNELS", "*:inbox:*"))
        assert server.send(peer, b"anybody?") is Sent.ACCEPTED
        assert arrive(server, Down)[0].peer == peer
    server.close(1)


def test_a_killed_server_is_noticed_when_redis_finds_no_reader(redis: Redis, monkeypatch: pytest.MonkeyPatch) -> None:
    """A client that sends does not wait for the next time that it would have asked."""
    client: Any = transport.connect(redis.location)
    monkeypatch.setattr(client, "period", 1000.0)
    with child("bind", redis.location) as process:
        arrive(client, Up)
        client.wait(0)
        client._beat_at += 1000.0
        process.kill()
        process.wait()
        until(lambda: not redis.say("PUBSUB", "CHANNELS", "*:hub:*"))
        assert client.send(SERVER, b"anybody?") is Sent.ACCEPTED
        assert arrive(client, Down)[0].peer == SERVER
    client.close(1)


def test_a_killed_server_keeps_its_location_until_its_lease_ends(redis: Redis) -> None:
    """Its successor waits for that, and the clients that it left find the successor."""
    location = redis.location.replace(options={"lease": "500ms"})
    client = transport.connect(redis.location)
    with child("bind", location) as process:
        arrive(client, Up)
        with pytest.raises(LocationInUse):
            transport.bind(location)
        process.kill()
        process.wait()
        server = transport.bind(location)
    assert arrive(client, Down)[0].peer == SERVER
    arrive(client, Up)
    works(server, client, arrive(server, Up)[0].peer)
    client.close(1)
    server.close(1)


def test_a_stopped_server_loses_its_location_and_is_told(redis: Redis) -> None:
    """Its lease runs out, another takes over with all clients, and it hears nothing meant for the other."""
    location = redis.location.replace(options={"lease": "200ms"})
    stale, client, peer = pair(location)
    client.send(SERVER, b"for the old one")
    until(lambda: redis.say("EXISTS", "remit:lease") == 0)
    fresh = transport.bind(location)
    arrive(client, Up)
    works(fresh, client, arrive(fresh, Up)[0].peer)
    down, before = arrive(stale, Down)
    assert down.peer == peer
    assert before == [Frame(peer, b"for the old one")]
    with pytest.raises(LocationInUse, match="took"):
        arrive(stale, Up)
    assert stale.send(peer, b"") is Sent.GONE
    assert redis.say("CLIENT", "LIST").count(b" name=remit ") == 2
    stale.close(1)
    works(fresh, client, next(iter(fresh._peers)))
    fresh.close(1)
    client.close(1)


def test_a_lapsed_lease_is_taken_again_if_nobody_wanted_it(redis: Redis) -> None:
    """A server that was late and alone goes on as if nothing had been."""
    server, client, peer = pair(redis.location.replace(options={"lease": "200ms"}))
    until(lambda: redis.say("EXISTS", "remit:lease") == 0)
    works(server, client, peer)
    assert redis.say("EXISTS", "remit:lease") == 1
    server.close(1)
    assert redis.say("EXISTS", "remit:lease") == 0
    client.close(1)


def test_garbage_is_dropped_and_counted(redis: Redis) -> None:
    """Anybody may publish: nothing but frames of known peers comes through."""
    server, client, peer = pair(redis.location)
    hub = redis.say("GET", "remit:lease").decode()
    inbox = redis.say("PUBSUB", "CHANNELS", "*:inbox:*")[0].decode()
    garbage = ["", "F", "J", "J" + "z" * 16, "F" + "0" * 16 + "hello", "J" + peer.decode(), "hello world, how are you?"]
    for text in garbage:
        redis.say("PUBLISH", hub, text)
    for text in ("", "+", "hello", "+" + "x" * 40, "-remit:0:hub:nobody"):
        redis.say("PUBLISH", "remit:0:news", text)
    works(server, client, peer)
    assert server.dropped == len(garbage)
    assert client.dropped == 4
    assert inbox.endswith(peer.decode())
    server.close(1)
    client.close(1)


def test_a_slow_subscriber_is_dropped_by_redis_with_a_notice(redis: Redis) -> None:
    """More than the window under way: Redis ends the connection; what came is a prefix, then comes Down."""
    server, client, peer = pair(redis.location)
    block, accepted = bytes(512 * 1024), 0
    while client.receive() is None:
        sent = client.send(SERVER, b"%06d" % accepted + block)
        accepted += sent is Sent.ACCEPTED
        if sent is Sent.FULL:
            client.wait(1.0)
        assert accepted < 1000, "redis keeps all of it"
    down, before = arrive(server, Down, client)
    assert down.peer == peer
    numbers = [int(frame.data[:6]) for frame in before]
    assert numbers == list(range(len(numbers)))
    assert len(numbers) < accepted
    arrive(client, Up, server)
    works(server, client, arrive(server, Up)[0].peer)
    server.close(1)
    client.close(1)


def test_the_window_is_far_below_what_redis_keeps() -> None:
    """Many clients that fill their windows at once are no slow subscriber yet."""
    assert transport.capabilities.window is not None
    assert transport.capabilities.window * 16 <= 4 * 1024 * 1024


def test_a_stopped_redis_fills_the_link_and_blocks_nothing(redis: Redis) -> None:
    """Unanswered bytes are bounded; all of them arrive once Redis goes on."""
    server, client, peer = pair(redis.location)
    os.kill(redis.pid, signal.SIGSTOP)
    accepted, frame = 0, bytes(64 * 1024)
    while client.send(SERVER, frame) is Sent.ACCEPTED:
        accepted += 1
        assert accepted * len(frame) <= 2 * 1024 * 1024
    assert accepted > 0
    os.kill(redis.pid, signal.SIGCONT)
    client.wait(DEADLINE)
    take(client, b"last")
    for _ in range(accepted):
        assert arrive(server, Frame)[0] == Frame(peer, frame)
    assert arrive(server, Frame)[0] == Frame(peer, b"last")
    server.close(1)
    client.close(1)


def test_a_forked_child_touches_nothing(redis: Redis) -> None:
    """It may close, forget or keep its copies: the parent's connection stays, and ends when the parent says so."""
    server, client, peer = pair(redis.location)
    descriptors = [link._wire.fileno() for link in (server, client)]
    reader, writer = os.pipe()
    done_reader, done_writer = os.pipe()
    with warnings.catch_warnings():  # the child only closes and exits
        warnings.simplefilter("ignore", DeprecationWarning)
        pid = os.fork()
    if pid == 0:
        status = 1
        with contextlib.suppress(BaseException):
            for descriptor in descriptors:
                with pytest.raises(OSError):
                    os.fstat(descriptor)
            for link in (server, client):
                with pytest.raises(ForkedLinkError):
                    link.receive()
                with pytest.raises(ForkedLinkError):
                    link.send(SERVER, b"")
                link.close(1)
            del link, server, client
            status = 0
        os.write(done_writer, b"x")
        os.close(writer)
        os.read(reader, 1)
        os._exit(status)
    os.close(reader)
    os.close(done_writer)
    os.read(done_reader, 1)
    os.close(done_reader)
    works(server, client, peer)
    client.close(1)
    assert arrive(server, Down)[0].peer == peer
    server.close(1)
    until(lambda: b" name=remit " not in redis.say("CLIENT", "LIST"))
    os.write(writer, b"x")
    os.close(writer)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0


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
