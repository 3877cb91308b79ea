"""Keys: over every transport, both ends that share one are heard by each other, and nobody else is."""

from __future__ import annotations

import asyncio
import pickle
import threading
from pathlib import Path

import pytest
from labour import start_worker
from ticking import ticked
from waiting import DEADLINE, tick_until

from remit import AsyncClient, AsyncServer, Broker, Client, Location, Pair, Server
from remit._protocol import frames
from remit._protocol.frames import FrameKind
from remit.errors import BadLocation, SessionRefused, Undelivered
from remit.options import resolve_options
from remit.plugins import find_transport
from remit.transport import SERVER, OwnedLink, Peer, Sent

KEY = b"a key of the tests"
STORM = {"seed": 5, "loss": 0.15, "duplication": 0.1, "reorder": 0.05, "heartbeat": "300ms", "linger": "30s"}


# -- it works --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("threaded", [True, False], ids=["threaded", "unthreaded"])
def test_events_and_answers_pass(location: Location, threaded: bool) -> None:
    heard: list[int] = []
    with Server(location, key=KEY) as server, ticked(server):
        server.add_listener("n", heard.append)
        server.add_listener("add", lambda a, b: a + b)
        with Client(server.location, key=KEY, threaded=threaded) as client:
            for number in range(3000):
                client.emit("n", number)
            assert client.request("add", 2, 3, timeout=DEADLINE) == 5
            client.emit("n", "x" * 200_000)
        assert heard == [*range(3000), "x" * 200_000]
        assert server.stats()["rejected"] == 0


def test_publications_pass(location: Location) -> None:
    heard: list[int] = []
    with Server(location, key=KEY) as server, Client(server.location, key=KEY) as client:
        with ticked(server):
            client.subscribe("price.*", heard.append, timeout=DEADLINE)
        for number in range(100):
            server.publish("price.gold", number)
        tick_until(server, lambda: len(heard) == 100)
        assert heard == list(range(100))


def test_what_the_server_emits_passes(location: Location) -> None:
    heard: list[int] = []
    with Server(location, key=KEY) as server, Client(server.location, key=KEY) as client:
        server.add_listener("hello", lambda event: event.sender.emit("answer", 7), pass_event=True)
        client.add_listener("answer", heard.append)
        client.emit("hello")
        tick_until(server, lambda: heard == [7])


def test_a_broker_and_its_worker_work(crossing_location: Location, tmp_path: Path) -> None:
    """The worker is a process, which has the key by the location that it is given."""
    place = crossing_location.replace(options=dict(crossing_location.options) | {"key": KEY.decode()})
    with Broker(place) as broker:
        thread = threading.Thread(target=broker.run)
        thread.start()
        worker = start_worker(broker.location.url, tmp_path)
        try:
            with Client(broker.location) as client:
                assert client.request("add", 20, 22, timeout=DEADLINE) == 42
                assert client.request("pid", timeout=DEADLINE) == worker.pid
        finally:
            worker.terminate()
            worker.wait(DEADLINE)
            broker.stop()
            thread.join(DEADLINE)


def test_a_pair_signals_with_keys(location: Location) -> None:
    with Pair.bind(location, key=KEY) as one, Pair.connect(one.location, key=KEY) as other:
        one.signal(1)
        assert other.wait(DEADLINE) == 1
        other.signal(2)
        assert one.wait(DEADLINE) == 2


def test_it_works_on_an_event_loop(location: Location) -> None:
    async def main() -> None:
        async with AsyncServer(location, key=KEY) as server, AsyncClient(server.location, key=KEY) as client:
            server.add_listener("add", lambda a, b: a + b)
            assert await client.request("add", 2, 3, timeout=DEADLINE) == 5

    asyncio.run(main())


@pytest.mark.timeout(120)
def test_everything_arrives_once_and_in_order_on_a_bad_day(location: Location) -> None:
    """What is lost, doubled or overtaken is made up for, although what comes late or twice is not let in."""
    spoiled = {name: str(value) for name, value in STORM.items()}
    place = location.replace(scheme=f"chaos+{location.scheme}", options=dict(location.options) | spoiled)
    heard: list[int] = []
    with Server(place, key=KEY) as server, Client(server.location, key=KEY) as client:
        server.add_listener("n", heard.append)
        for number in range(1000):
            client.emit("n", number)
            if number % 50 == 0:
                server.tick()
        tick_until(server, lambda: client.flush(0.0))
        assert heard == list(range(1000))
        assert server.stats()["rejected_replayed"] > 0


def test_a_server_that_comes_back_is_greeted_again(location: Location) -> None:
    heard: list[int] = []
    with Server(location, key=KEY) as server:
        place = server.location
        server.add_listener("n", heard.append)
        client = Client(place, key=KEY, heartbeat=0.3)
        client.emit("n", 1)
        tick_until(server, lambda: client.flush(0.0))
    with client:
        client.emit("n", 2)
        with Server(place, key=KEY) as server:
            server.add_listener("n", heard.append)
            tick_until(server, lambda: client.flush(0.0))
        assert heard == [1, 2]


# -- nobody else is heard --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("of_server", "of_client", "reason", "counted", "advice"),
    [
        (KEY, None, "unsigned", "rejected_unsigned", "give this client the key="),
        (None, KEY, "keyed", "rejected_keyed", "it has no key: give it the key="),
        (KEY, b"another", "key", "rejected_forged", "give both ends the same key="),
    ],
    ids=["client-without", "server-without", "another-key"],
)
def test_who_has_not_the_same_key_is_refused_and_told_what_to_do(
    location: Location, of_server: bytes, of_client: bytes, reason: str, counted: str, advice: str
) -> None:
    heard: list[int] = []
    with Server(location, key=of_server) as server, ticked(server):
        server.add_listener("n", heard.append)
        client = Client(server.location, key=of_client)
        with pytest.raises(SessionRefused) as refused:
            client.request("n", 1, timeout=DEADLINE)
        assert refused.value.reason == reason
        assert advice in str(refused.value)
        with pytest.raises(SessionRefused):
            client.emit("n", 2)
        with pytest.raises(Undelivered) as undelivered:
            client.close()
        assert advice in str(undelivered.value)
        assert server.stats()[counted] > 0
    assert heard == []


def test_what_was_recorded_on_the_wire_is_not_heard_again(location: Location, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever repeats a client's every frame on a connection of his own begins nothing."""
    recorded: list[bytes] = []
    heard: list[int] = []
    with Server(location, key=KEY) as server, Client(server.location, key=KEY, threaded=False) as client:
        server.add_listener("n", heard.append)
        transport = find_transport(location.scheme)
        _, address = resolve_options(client.location, transport.options, {})
        raw = transport.connect(address)
        kind = type(raw)
        send = kind.send

        def record(link: OwnedLink, peer: Peer, frame: bytes) -> Sent:
            if peer == SERVER:
                recorded.append(bytes(frame))
            return send(link, peer, frame)

        with monkeypatch.context() as patch:
            patch.setattr(kind, "send", record)
            for number in range(3):
                client.emit("n", number)
                tick_until(server, lambda: client.tick() == 0 and client.flush(0.01))
        sealed = [frame for frame in recorded if frames.kind_of(frame) is FrameKind.AUTHENTICATED]
        assert len(sealed) >= 4
        sessions = server.stats()["sessions"]
        for frame in recorded:
            tick_until(server, lambda frame=frame: raw.receive() is None and raw.send(SERVER, frame) is Sent.ACCEPTED)
        # It is a channel of his own that his knock began, and he has no key to it.
        tick_until(server, lambda: server.stats().get("rejected_forged", 0) >= len(sealed))
        assert server.stats()["sessions"] == sessions
        raw.close(0.0)
        client.emit("n", 3)
        tick_until(server, lambda: client.tick() == 0 and client.flush(0.01))
        assert heard == [0, 1, 2, 3]


# -- where it is given, and where it shows ---------------------------------------------------------------------


def ends(server: Server, client: Client) -> None:
    """Expect that both have the same key, and need it."""
    with server, ticked(server), client:
        server.add_listener("add", lambda a, b: a + b)
        assert client.request("add", 2, 3, timeout=DEADLINE) == 5
        with Client(server.location.replace(options={})) as stranger, pytest.raises(SessionRefused):
            stranger.request("add", 2, 3, timeout=DEADLINE)


PLACE = Location("memory://key")


def test_a_location_may_hold_the_key() -> None:
    place = Location("memory://key", key="s3cret")
    ends(Server(place), Client(place))
    ends(Server(PLACE, key="s3cret"), Client(place))


def test_a_file_may_hold_the_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret\n")
    ends(Server(PLACE, key_file=tmp_path / "key"), Client(PLACE, key=b"s3cret"))
    ends(Server(PLACE.replace(options={"key_file": tmp_path / "key"})), Client(PLACE, key=b"s3cret"))


def test_the_configuration_may_hold_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_SIGNED_URL", "memory://key?key=s3cret")
    ends(Server("signed"), Client(PLACE, key="s3cret"))


def test_a_keyword_goes_before_the_location(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("s3cret")
    ends(Server(Location("memory://key", key="other"), key_file=tmp_path / "key"), Client(PLACE, key="s3cret"))


def test_a_pickled_end_takes_its_key_along() -> None:
    with Server(PLACE, key="s3cret") as server:
        copy = pickle.dumps(server)
    ends(pickle.loads(copy), pickle.loads(pickle.dumps(Client(PLACE, key=b"s3cret"))))


def test_a_key_is_never_shown(caplog: pytest.LogCaptureFixture) -> None:
    place = Location("memory://key?key=s3cret&linger=1s")
    assert Location(place.url) == place
    assert str(place) == "memory://key?key=***&linger=1s"
    with Server(place) as server, ticked(server), Client(place) as client, Client(PLACE) as stranger:
        with pytest.raises(SessionRefused):
            stranger.request("nothing", timeout=DEADLINE)
        options = resolve_options(place, find_transport("memory").options, {})
        shown = [repr(each) for each in (place, server, client, *options, server.location)]
    assert "rejected frames: " in caplog.text
    assert not any("s3cret" in text for text in (*shown, caplog.text))


@pytest.mark.parametrize("url", ["x://a?key=s3cret&key=s3cret", "x://a?key=s3cret#s3cret", "://u@b?key=s3cret"])
def test_a_key_is_not_shown_when_its_url_cannot_be_read(url: str) -> None:
    with pytest.raises(BadLocation) as raised:
        Location(url)
    assert "s3cret" not in str(raised.value)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"key": b""}, "the key is empty: create one"),
        ({"key": "a", "key_file": "/dev/null"}, "remove one of them"),
        ({"key_file": "/no/such/file"}, "key_file cannot be read: "),
        ({"key_file": "/dev/null"}, "the key is empty: create one"),
    ],
)
def test_what_is_no_key_is_told_at_once(given: dict[str, object], words: str) -> None:
    for kind in (Server, Client):
        with pytest.raises(BadLocation, match=words):
            kind(PLACE, **given)


def test_a_key_is_bytes_or_a_text() -> None:
    with pytest.raises(TypeError, match="key must be bytes or a string, not int"):
        Client(PLACE, key=7)  # type: ignore[arg-type]
