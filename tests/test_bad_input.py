"""What cannot be meant is refused where it is said, with the next action; nothing hangs, and nothing is lost by it."""

from __future__ import annotations

import math
import os
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from enum import StrEnum
from typing import Any

import pytest
from internals import answer_reserved, post, sessions_of
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import Broker, Client, Event, Location, Pair, Server, Worker
from remit.codec import MessagePack
from remit.errors import BadLocation, CodecError, EmitError, NoListener, Undelivered
from remit.plugins import find_transport


@pytest.fixture
def server(location) -> Iterator[Server]:
    with Server(location) as server, ticked(server):
        yield server


@pytest.fixture
def client(server) -> Iterator[Client]:
    with Client(server.location) as client:
        yield client


# -- places ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["unix:///tmp/a%00b", "unix:///tmp/a\0b", "nng+ipc:///a%00b", "zmq+tcp://a%00b:5"])
def test_a_zero_byte_has_no_place_in_a_location(url: str) -> None:
    with pytest.raises(BadLocation, match="zero byte"):
        Location(url)


def test_a_zero_byte_has_no_place_in_a_host() -> None:
    with pytest.raises(BadLocation):
        Location("a\0b", 5555)


@pytest.mark.parametrize("text", ["again", "-1", "inf", "nan", ""])
def test_a_length_of_time_that_is_none_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(BadLocation, match="write 2s, 500ms or 1m"):
        Client(f"memory://x?linger={text}")


def test_a_codec_that_nobody_has_is_refused_by_both_ends() -> None:
    for end in (Client, Server):
        with pytest.raises(BadLocation, match="json, msgpack"):
            end("memory://x?codec=pickle")


# -- options -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("option", ["queue", "queue_bytes", "window"])
@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (-1, ValueError), (1.5, TypeError), ("9", TypeError)])
def test_a_count_is_a_whole_number_above_zero(option: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=option):
        Client("memory://x", **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("option", ["emit_timeout", "linger", "request_timeout", "heartbeat"])
@pytest.mark.parametrize(
    ("value", "error"),
    [(-1, ValueError), (math.inf, ValueError), (math.nan, ValueError), ("1s", TypeError), (True, TypeError)],
)
def test_a_length_of_time_is_a_number_of_seconds(option: str, value: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=f"{option} must be a number of seconds"):
        Client("memory://x", **{option: value})  # type: ignore[arg-type]


def test_a_server_with_a_wrong_option_leaves_its_location_free(location: Location) -> None:
    wrong: dict[str, Any]
    for wrong in ({"linger": "x"}, {"session_ttl": -1}, {"on_error": 5}):
        with pytest.raises((TypeError, ValueError)):
            Server(location, **wrong)
    Server(location).close()


async def async_generator() -> AsyncIterator[int]:
    yield 1


@pytest.mark.parametrize(
    ("make", "error"),
    [
        (lambda: Client("memory://x", heartbeat=0), ValueError),
        (lambda: Client("memory://x", codec=5), CodecError),  # type: ignore[arg-type]
        (lambda: Client("memory://x", codec="pickle"), CodecError),
        (lambda: Client("memory://x", on_error=5), TypeError),  # type: ignore[arg-type]
        (lambda: Broker("memory://x", lease=0), ValueError),
        (lambda: Broker("memory://x", lease=-1), ValueError),
        (lambda: Broker("memory://x", max_attempts=0), ValueError),
        (lambda: Broker("memory://x", queue=0), ValueError),
        (lambda: Worker("memory://x", threads=0), ValueError),
        (lambda: Worker("memory://x", capacity="3"), TypeError),  # type: ignore[arg-type]
        (lambda: Worker("memory://x").add_handler("x", 5), TypeError),  # type: ignore[arg-type]
        (lambda: Worker("memory://x").add_handler("x", async_generator), TypeError),
        (lambda: Worker("memory://x").add_handler("remit.x", print), ValueError),
        (lambda: Pair.bind("memory://x", lease=0), ValueError),
        (lambda: Pair.connect("memory://x", lease=math.nan), ValueError),
    ],
)
def test_what_no_end_can_be_made_with_is_refused_at_once(make: Callable[[], object], error: type[Exception]) -> None:
    with pytest.raises(error):
        make()


# -- events ------------------------------------------------------------------------------------------------------


class Name(StrEnum):
    KNOWN = "known"


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_what_is_no_name_is_refused_and_its_neighbours_arrive(server: Server, codec: str) -> None:
    """Encoded all the same, it would make its whole frame unreadable: events that nobody could fault would be lost."""
    heard: list[int] = []
    server.add_listener("known", heard.append)
    with Client(server.location, codec=codec) as client:
        for number in range(100):
            client.emit(Name.KNOWN, number)
            for wrong in (5, None, b"known", ("known",)):
                with pytest.raises(TypeError, match="must be a string"):
                    client.emit(wrong)  # type: ignore[arg-type]
        assert client.flush(DEADLINE)
    assert heard == list(range(100))
    assert server.stats()["rejected"] == 0


@pytest.mark.parametrize(
    "event",
    [
        Event(5),  # type: ignore[arg-type]
        Event("known", 5),  # type: ignore[arg-type]
        Event("known", "text"),  # type: ignore[arg-type]
        Event("known", (), {1: 2}),  # type: ignore[dict-item]
        Event("known", (), {}, {1: 2}),  # type: ignore[dict-item]
        Event("known", (), {}, None),  # type: ignore[arg-type]
    ],
)
def test_what_nobody_could_read_as_an_event_is_refused(server: Server, client: Client, event: Any) -> None:
    heard: list[int] = []
    server.add_listener("known", heard.append)
    client.emit("known", 1)
    with pytest.raises(TypeError):
        client.emit(event)
    client.emit(Event("known", (2,), {}, {"trace": "7"}))
    assert client.flush(DEADLINE)
    assert heard == [1, 2]


def test_names_are_checked_wherever_one_is_given(server: Server, client: Client) -> None:
    wrong: Any = 5
    for call in (client.request, client.submit, server.publish, server.emit):
        with pytest.raises(TypeError, match="must be a string"):
            call(wrong)


def test_an_error_about_a_huge_name_is_short(client: Client) -> None:
    with pytest.raises(Exception, match="send it in parts") as refused:
        client.emit("x" * 20_000_000)
    assert len(str(refused.value)) < 300
    assert len(str(Undelivered([Event("x" * 10_000)]))) < 300


def test_only_clients_that_are_here_can_be_emitted_to(server: Server) -> None:
    for stranger in ("nobody", "ab" * 16, "zz", ""):
        with pytest.raises(EmitError, match="no client here"):
            server.emit_to(stranger, "x")
    for wrong in (5, None, b"x"):
        with pytest.raises(TypeError, match="sender of an event"):
            server.emit_to(wrong, "x")  # type: ignore[arg-type]


# -- questions and subscriptions -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "error"),
    [({"timeout": "x"}, TypeError), ({"timeout": math.nan}, ValueError), ({"on_progress": 5}, TypeError)],
)
def test_a_question_that_cannot_be_asked_so_is_refused(
    client: Client, options: dict[str, Any], error: type[Exception]
) -> None:
    with pytest.raises(error):
        client.request("x", **options)
    assert client.stats()["requests"] == 0


def test_a_question_may_have_all_the_time_in_the_world(server: Server, client: Client) -> None:
    server.add_listener("echo", lambda value: value)
    assert client.request("echo", 1, timeout=1e300) == 1
    assert client.request("echo", 2, timeout=math.inf) == 2


@pytest.mark.parametrize(
    ("arguments", "options"),
    [
        ((5, print), {}),
        (("", print), {}),
        (("remit.x", print), {}),
        (("x", 5), {}),
        (("x", print), {"queue": 0}),
        (("x", print), {"queue": "x"}),
        (("x", print), {"when_full": "drop"}),
        (("x", print), {"max_lag": -1}),
        (("x", print), {"max_lag": "x"}),
        (("x", print), {"on_gap": 5}),
    ],
)
def test_a_subscription_that_cannot_be_is_refused_before_it_is_asked_for(
    server: Server, client: Client, arguments: tuple[Any, ...], options: dict[str, Any]
) -> None:
    with pytest.raises((TypeError, ValueError)):
        client.subscribe(*arguments, **options)
    assert server.stats()["subscriptions"] == 0


def test_a_strangers_subscription_cannot_break_the_publisher(server: Server, client: Client) -> None:
    for terms in (
        (1, "x", 10, "drop_oldest", "soon", False),
        (2, "x", "many", "drop_oldest", None, False),
        ([3], "x", 10, "drop_oldest", None, False),
        (4, 4, 10, "drop_oldest", None, False),
    ):
        with pytest.raises(Exception, match="Error"):
            client.request("remit.subscribe", *terms, timeout=DEADLINE)
    assert server.stats()["subscriptions"] == 0
    server.publish("x", 1)


# -- the wrong server --------------------------------------------------------------------------------------------


def test_a_worker_says_that_a_server_is_no_broker(server: Server) -> None:
    worker = Worker(server.location)
    worker.add_handler("x", print)
    with pytest.raises(NoListener, match="is not a broker: start one"):
        worker.run(DEADLINE)
    worker.close()


def test_a_worker_says_so_too_of_one_that_answers_nonsense(server: Server) -> None:
    answer_reserved(server, "remit.ready", "soon")
    worker = Worker(server.location)
    worker.add_handler("x", print)
    with pytest.raises(NoListener, match="is not a broker: start one"):
        worker.run(DEADLINE)
    worker.close()


def test_a_pair_says_that_a_server_is_none(server: Server) -> None:
    with pytest.raises(NoListener, match="is not a pair: create one"):
        Pair.connect(server.location, timeout=DEADLINE)


def test_whoever_met_no_server_is_told_to_look_for_one() -> None:
    client = Client("memory://nobody-is-here", linger=0.05)
    client.emit("x")
    with pytest.raises(Undelivered, match="no server was met"):
        client.close()


# -- what a broker sends -----------------------------------------------------------------------------------------


def test_garbage_from_a_broker_is_rejected_and_the_worker_goes_on(location: Location) -> None:
    encoded = MessagePack().encode("add", (2, 3), {}, {})
    with Broker(location) as broker:
        thread = threading.Thread(target=broker.run)
        thread.start()
        worker = Worker(broker.location)
        worker.add_handler("add", lambda a, b: a + b)
        working = threading.Thread(target=worker.run)
        working.start()
        wait_until(lambda: broker.stats()["workers"] == 1)
        (session,) = sessions_of(broker.server)
        garbage: list[tuple[Any, ...]] = [
            (),
            ("token", 1, None, "msgpack", encoded, 1),
            (1, 1, None, "pickle", encoded, 1),
            (1, 1, None, 5, encoded, 1),
            (None,) * 6,
            ([], {}, 1.5, b"", "", ""),
        ]
        for args in garbage:
            post(broker.server, session, "remit.job", *args)
        for name in ("remit.reply", "remit.progress", "remit.published", "remit.unsubscribed", "remit.signal"):
            post(broker.server, session, name, "garbage", None)
        with Client(broker.location) as client:
            assert client.request("add", 2, 3, timeout=DEADLINE) == 5
        # Those for the link's thread: jobs, an answer, and progress.
        wait_until(lambda: worker.client.stats()["rejected"] == len(garbage) + 2)
        worker.stop()
        working.join(DEADLINE)
        worker.close()
        broker.stop()
        thread.join(DEADLINE)


# -- forks -------------------------------------------------------------------------------------------------------


def test_a_forked_child_closes_its_copy_of_a_server_and_the_parents_goes_on(location: Location) -> None:
    if not find_transport(location.scheme).capabilities.forks:
        pytest.skip("its library aborts in a forked child")
    with Server(location) as server:
        heard: list[str] = []
        server.add_listener("x", lambda event: (heard.append("x"), event.sender.emit("y")), pass_event=True)
        with Client(server.location) as client:
            client.emit("x")
            wait_until(lambda: server.tick() and heard)
            server.publish("nobody")
            server.emit_to(sessions_of(server)[0].id.hex(), "y")
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", DeprecationWarning)  # That there are threads is what is tried here.
                pid = os.fork()
            if pid == 0:
                try:
                    server.close()
                except BaseException:
                    os._exit(1)
                os._exit(0)
            assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
            client.emit("x")
            wait_until(lambda: server.tick() and len(heard) == 2)
            wait_until(lambda: not server.tick() and client.flush(0.01))
