"""Publications: from a server to all who subscribed, over every transport."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from types import SimpleNamespace
from unittest import mock

import pytest
from ticking import ticked
from waiting import DEADLINE, tick_until, wait_until

from remit import Client, Server
from remit.errors import CodecError, FrameTooLarge, RequestFailed, RequestTimeout
from remit.transports.memory import MemoryLink
from remit.transports.stream_link import StreamLink


@pytest.fixture
def server(location) -> Iterator[Server]:
    with Server(location) as server, ticked(server):
        yield server


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.location) as client:
        yield client


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_what_is_published_after_subscribing_arrives_in_order(server, codec):
    heard: list[int] = []
    with Client(server.location, codec=codec) as client:
        client.subscribe("price.*", lambda pair, *, number: heard.append(number))
        for number in range(1000):
            assert server.publish("price.tick", "EURUSD", number=number) == 1
            server.publish("weather", "rain")
        wait_until(lambda: len(heard) == 1000)
        assert heard == list(range(1000))


def test_each_subscriber_gets_its_own(server):
    heard: dict[str, list[int]] = {"all": [], "one": []}
    with Client(server.location) as one, Client(server.location) as two:
        one.subscribe("a", heard["one"].append)
        two.subscribe("*", heard["all"].append)
        assert server.publish("a", 1) == 2
        assert server.publish("b", 2) == 1
        wait_until(lambda: heard == {"all": [1, 2], "one": [1]})


def test_who_unsubscribes_hears_no_more(server, client):
    heard: list[int] = []
    subscription = client.subscribe("a", heard.append)
    server.publish("a", 1)
    wait_until(lambda: heard == [1])
    subscription.close()
    subscription.close()
    wait_until(lambda: server.stats()["subscriptions"] == 0)
    assert server.publish("a", 2) == 0


def test_a_client_that_ends_is_forgotten(server):
    with Client(server.location) as client:
        client.subscribe("a", print)
        assert server.stats()["subscriptions"] == 1
    wait_until(lambda: server.stats()["subscriptions"] == 0)


def test_the_last_values_come_on_joining(server, client):
    server.publish("state.a", 1, keep=True)
    server.publish("state.a", 2, keep=True)
    server.publish("state.b", 3, keep=True)
    server.publish("state.c", 4)
    heard: list[int] = []
    client.subscribe("state.*", heard.append, last=True)
    server.publish("state.a", 5, keep=True)
    wait_until(lambda: len(heard) == 3)
    assert sorted(heard[:2]) == [2, 3]
    assert heard[2] == 5
    without: list[int] = []
    client.subscribe("state.*", without.append)
    server.publish("state.a", 6)
    wait_until(lambda: without == [6])


@pytest.fixture
def narrow(location) -> Iterator[Server]:
    """A server that has no more than 64 events under way to each client."""
    with Server(location.replace(options={**dict(location.options), "window": "64"})) as server, ticked(server):
        yield server


@pytest.mark.parametrize("policy", ["drop_oldest", "drop_newest"])
def test_a_slow_subscriber_hears_of_the_gap_and_holds_up_nobody(narrow, policy):
    """Its listener does not return while far more is published than its window and queue may hold."""
    release = threading.Event()
    heard: list[int] = []
    gaps: list[int] = []
    others: list[int] = []

    def slow(number: int) -> None:
        release.wait(DEADLINE)
        heard.append(number)

    def caught_up() -> bool:
        narrow.publish("n", 2000)
        return 2000 in heard

    with Client(narrow.location) as client, Client(narrow.location) as other:
        subscription = client.subscribe("n", slow, queue=50, when_full=policy, on_gap=gaps.append)
        other.subscribe("n", others.append, queue=10_000)
        for number in range(2000):
            narrow.publish("n", number)
        wait_until(lambda: len(others) == 2000)
        release.set()
        wait_until(caught_up)
    counted = [number for number in heard if number < 2000]
    assert counted == sorted(set(counted))
    assert 50 <= len(counted) < 500
    assert sum(gaps) == subscription.missed >= 1500
    assert others[:2000] == list(range(2000))


def test_a_subscriber_that_lags_can_be_dropped(narrow):
    release = threading.Event()
    with Client(narrow.location) as client:
        subscription = client.subscribe("n", lambda _: release.wait(DEADLINE), queue=10, when_full="unsubscribe")
        for number in range(2000):
            narrow.publish("n", number)
        wait_until(lambda: narrow.stats()["subscriptions"] == 0)
        release.set()
        wait_until(lambda: subscription.ended)
        assert "more than 10 publications waited" in subscription.ended


def test_a_subscriber_whose_window_is_full_is_dropped_at_once(location):
    """It cannot be told yet; but it is not kept until it can."""
    heard: list[int] = []
    eight = location.replace(options={**dict(location.options), "window": "8"})
    with Server(eight) as server, Client(server.location) as client:
        with ticked(server):
            subscription = client.subscribe("n", heard.append, queue=8, when_full="unsubscribe")
        for number in range(8):
            server.publish("n", number)
        server.tick()  # Eight leave, and their acknowledgements are not looked at.
        for number in range(8, 17):
            server.publish("n", number)
        assert server.stats()["subscriptions"] == 0
        tick_until(server, lambda: subscription.ended)
    assert heard == list(range(8))


def test_what_is_too_old_is_not_sent(location):
    heard: list[int] = []
    with Server(location) as server, Client(server.location) as client:
        with ticked(server):
            client.subscribe("n", heard.append, max_lag=0.0)
        server.publish("n", 1)  # nobody ticks
        server.wait(0.0)
        with ticked(server):
            wait_until(lambda: server.stats()["publications_dropped"] == 1)
    assert heard == []


def test_after_a_restart_the_subscriptions_live_and_the_gap_is_told(location):
    heard: list[int] = []
    gaps: list[int | None] = []
    server = Server(location)
    where = server.location
    with Client(where) as client:
        with ticked(server):
            client.subscribe("n", heard.append, on_gap=gaps.append)
            server.publish("n", 1)
            wait_until(lambda: heard == [1])
        server.close()
        with Server(where) as again, ticked(again):
            wait_until(lambda: again.stats()["subscriptions"] == 1)
            again.publish("n", 2)
            wait_until(lambda: heard == [1, 2])
    assert gaps == [None]


def test_after_a_restart_no_subscription_ends_for_what_becomes_of_another(location):
    """One client's ``on_gap`` raises, and the new server is not ticked for longer than a request may take."""
    errors: list[Exception] = []
    gaps: list[int | None] = []

    def fail(_: int | None) -> None:
        raise LookupError("gap")

    server = Server(location)
    where = server.location
    with Client(where, request_timeout=0.2, on_error=lambda _, error: errors.append(error)) as client:
        with ticked(server):
            client.subscribe("a", print, on_gap=fail, timeout=DEADLINE)
            client.subscribe("b", print, on_gap=gaps.append, timeout=DEADLINE)
        server.close()
        with Server(where) as again:
            wait_until(lambda: errors and gaps == [None])
            with pytest.raises(RequestTimeout):
                client.request("later than these")
            with ticked(again):
                wait_until(lambda: again.stats()["subscriptions"] == 2, timeout=10)
    assert [str(error) for error in errors] == ["gap"]


def test_a_subscription_waits_for_its_server(location):
    if location.port == 0:
        location = location.replace(port=9)
    with Client(location, linger=0.0) as client, pytest.raises(RequestTimeout):
        client.subscribe("n", print, timeout=0.05)


def test_bad_subscriptions_are_refused(server, client):
    with pytest.raises(ValueError, match="drop_oldest, drop_newest, unsubscribe"):
        client.subscribe("n", print, when_full="block")
    with pytest.raises(ValueError, match="at least 1"):
        client.subscribe("n", print, queue=0)
    with pytest.raises(RequestFailed):
        client.request("remit.subscribe", "nonsense")
    client.emit("remit.unsubscribe", "nonsense")
    with pytest.raises(ValueError, match="is reserved"):
        server.publish("remit.reply", 1)
    with pytest.raises(CodecError):
        client.subscribe("n", print) and server.publish("n", object())
    assert server.publish("other") == 0


def test_an_unthreaded_client_hears_when_it_ticks(server):
    heard: list[int] = []
    with Client(server.location, threaded=False) as client:
        client.subscribe("n", heard.append)
        server.publish("n", 1)
        wait_until(lambda: heard == [1], tick=client)


def test_a_server_emits_to_one_client(location):
    heard: list[str] = []
    with Server(location) as server, Client(server.location) as client, Client(server.location) as other:
        senders: list[object] = []
        server.add_listener("hello", lambda event: senders.append(event.sender), pass_event=True)
        client.add_listener("word", heard.append)
        other.add_listener("word", lambda _: heard.append("the other"))
        client.emit("hello")
        other.emit("other")
        tick_until(server, lambda: senders)
        server.emit_to(senders[0], "word", "one")
        server.emit_to(senders[0].id, "word", "two")
        tick_until(server, lambda: heard == ["one", "two"])
        tick_until(server, lambda: client.flush(0.01) and other.flush(0.01))


def test_a_last_value_is_what_was_published_and_not_what_became_of_it(server):
    value = [1, 2]
    server.publish("state", value, keep=True)
    value.append(3)
    for codec in ("msgpack", "json"):
        with Client(server.location, codec=codec) as client:
            heard: list[list[int]] = []
            client.subscribe("state", heard.append, last=True)
            wait_until(lambda heard=heard: heard == [[1, 2]])


def test_a_client_that_subscribes_during_a_publication_stops_no_later_one(server, client):
    heard: list[object] = []

    class Number:
        """Like a scalar of numpy. When it is encoded, a client subscribes that cannot receive the publication."""

        shape = ()

        @property
        def dtype(self):
            if not heard:
                heard.append("subscribed")
                other.subscribe("n", heard.append)
            return SimpleNamespace(kind="i")

        def item(self):
            return 5

    with Client(server.location, codec="json") as other:
        server.publish("n", {(1, 2): Number()}, keep=True)
        server.publish("n", 6)
        wait_until(lambda: heard == ["subscribed", 6])


def test_what_cannot_be_kept_is_refused_before_anybody_subscribes(server, client):
    with pytest.raises(CodecError):
        server.publish("state", object(), keep=True)
    heard: list[int] = []
    client.subscribe("*", heard.append, last=True)
    server.publish("n", 1)
    wait_until(lambda: heard == [1])


def test_a_publication_that_fits_no_frame_is_refused_and_all_others_arrive(server, client):
    heard: list[int] = []
    gaps: list[int] = []
    client.subscribe("n", lambda value: heard.append(len(value)), on_gap=gaps.append)
    with pytest.raises(FrameTooLarge, match="send it in parts"):
        server.publish("n", b"x" * 20_000_000)
    server.publish("n", b"xy")
    wait_until(lambda: heard == [2])
    assert gaps == []


def test_a_subscriber_with_smaller_frames_sees_a_gap(server):
    heard: list[int] = []
    gaps: list[int] = []
    options = {**dict(server.location.options), "max_frame": "64KiB"}
    with Client(server.location.replace(options=options)) as client:
        client.subscribe("n", lambda value: heard.append(len(value)), on_gap=gaps.append)
        server.publish("n", b"x" * 100_000)
        server.publish("n", b"xy")
        wait_until(lambda: heard == [2])
        assert gaps == [1]


@pytest.mark.parametrize("scheme", ["memory", "unix"])
def test_a_server_that_closes_sends_nothing_to_a_client_that_has_closed(scheme, short_path):
    """Its BYE is received first: there the link has it as soon as close() has returned."""
    server = Server("memory://closing" if scheme == "memory" else f"unix://{short_path}/s", threaded=False)
    client = Client(server.location, threaded=False)
    joining = threading.Thread(target=client.subscribe, args=("news", print))
    joining.start()
    while joining.is_alive():
        server.tick()
        server.wait(0.01)
    server.publish("news", "late")
    client.close()
    link = MemoryLink if scheme == "memory" else StreamLink
    with mock.patch.object(link, "send", autospec=True, side_effect=link.send) as send:
        server.close()
    assert not send.mock_calls
