"""Values that the other end cannot decode: rejected by the sender, and lost alone if they arrive anyway."""

from __future__ import annotations

import datetime
import enum
import threading
from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from internals import client_io, server_io, sessions_of
from ticking import ticked
from waiting import DEADLINE, wait_until

from remit import Client, Location, Server
from remit._patterns.names import REPLY, REQUEST
from remit.codec import MAX_NESTING, find_codec
from remit.errors import CodecError, RequestError, RequestFailed


@dataclass(frozen=True)
class Cell:
    x: int
    y: int


@dataclass
class Game:
    board: dict[Any, str]


class Color(enum.Enum):
    RED = 1


class Scalar:
    """Like a scalar of numpy."""

    shape = ()

    def __init__(self, value: Any, kind: str) -> None:
        self.value = value
        self.dtype = type("dtype", (), {"kind": kind})

    def item(self) -> Any:
        return self.value


def nested(depth: int, wrap: Callable[[Any], Any] = lambda value: [value]) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = wrap(value)
    return value


def endless() -> list[Any]:
    value: list[Any] = []
    value.append(value)
    return value


BAD: list[tuple[Any, str]] = [
    ({Cell(1, 2): "knight"}, r"args\[1\]\[Cell\(x=1, y=2\)\]: a key of type Cell"),
    ({"board": [{Cell(1, 2): 3}]}, r"args\[1\]\['board'\]\[0\]\[Cell"),
    (Game({Cell(1, 2): "x"}), r"args\[1\]\.board\[Cell"),
    ({(1, (Cell(1, 2),)): 3}, r"a key of type tuple"),
    (nested(MAX_NESTING + 1), "nested deeper than 128 levels"),
    (nested(MAX_NESTING + 1, lambda value: {"inner": value}), "nested deeper than 128 levels"),
    (nested(5000), "nested deeper than 128 levels"),
    (endless(), "nested deeper than 128 levels"),
    ({"name": "caf\udce9"}, r"args\[1\]\['name'\]: .*surrogates"),
    ([1, object()], r"args\[1\]\[1\]: an object of type builtins.object"),
    ([Scalar([1], "V")], r"\.item\(\) of a scalar"),
    (msgspec.Raw(b"\xc1"), "decode it first"),
    ({Color.RED: 1, 1: 2}, "two keys of this dict are equal"),
]


@pytest.mark.parametrize("codec", ["msgpack", "json"])
@pytest.mark.parametrize(("value", "message"), BAD, ids=[message[:30] for _, message in BAD])
def test_a_value_that_does_not_decode_is_rejected_with_its_place(codec: str, value: Any, message: str) -> None:
    server = Server("memory://rejecting")
    with server, ticked(server), Client(server.location, codec=codec) as client:
        server.add_listener("fetch", lambda: value)
        for send in (client.emit, client.request, client.submit):
            with pytest.raises(CodecError, match=message):
                send("board", 0, value)
        with pytest.raises(CodecError, match=message.replace(r"args\[1\]", "kwargs.*").replace(r"\['name'\]", "")):
            client.emit("board", value=value)
        with pytest.raises(RequestFailed, match="CodecError"):
            client.request("fetch", timeout=DEADLINE)


def test_the_deepest_accepted_value_arrives_also_on_a_deep_stack(location: Location) -> None:
    got: list[Any] = []
    with Server(location) as server, Client(server.location) as client:
        server.add_listener("*", lambda *args: got.extend(args))

        def tick_below(depth: int) -> None:
            if depth:
                tick_below(depth - 1)
            else:
                while len(got) < 3:
                    server.tick()
                    server.wait(0.01)

        for value in (1, nested(MAX_NESTING), 2):
            client.emit("deep", value)
        thread = threading.Thread(target=tick_below, args=(850,))
        thread.start()
        thread.join(DEADLINE)
    assert got == [1, nested(MAX_NESTING), 2]


INJECTED: dict[str, list[tuple[bytes, str]]] = {
    "msgpack": [
        (msgspec.msgpack.encode(("a key", ({Cell(1, 2): 3},))), "a key"),
        (b"\x92\xa4deep" + b"\x91" * 100_000 + b"\x90", "deep"),
        (b"\x92\xa9truncated", "truncated"),
        (b"\xc1", ""),
        (b"\x05", ""),
        (b"\x90", ""),
    ],
    "json": [(b'["truncated",[1', "truncated"), (b'["nan",[nan]]', "nan"), (b'["two",[]],["two",[]]', "two")],
}


def logged_names(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.message.split("'")[1] for record in caplog.records if "cannot be decoded" in record.message]


@pytest.mark.parametrize("codec", INJECTED)
def test_an_undecodable_event_to_the_server_is_lost_alone(
    location: Location, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    errors: list[tuple[str, Exception]] = []
    bad = INJECTED[codec]
    with Server(location) as server:
        server.add_listener("order", got.append)
        server.add_listener("ask", lambda: "answer")
        client = Client(server.location, codec=codec, on_error=lambda event, error: errors.append((event.name, error)))
        with client:
            client.emit("order", 0)
            for number, (data, _) in enumerate(bad, 1):
                client.emit("order", number)
                client_io(client).outbox.pending.append(data)
            client.emit("order", len(bad) + 1)
            future = client.submit("ask", timeout=DEADLINE)
            with ticked(server):
                assert client.flush(DEADLINE)
                assert future.result(DEADLINE) == "answer"
                wait_until(lambda: len(errors) == len(bad))
            assert server.stats()["rejected_undecodable"] == client.stats()["undecodable_there"] == len(bad)
    assert got == [*range(len(bad) + 2)]
    assert [name for name, _ in errors] == [name for _, name in bad]
    assert all(isinstance(error, CodecError) and "the server could not decode" in str(error) for _, error in errors)
    assert logged_names(caplog) == [*dict.fromkeys(name for _, name in bad)]


@pytest.mark.parametrize("codec", INJECTED)
def test_an_undecodable_event_to_a_client_is_lost_alone(
    location: Location, codec: str, caplog: pytest.LogCaptureFixture
) -> None:
    got: list[int] = []
    errors: list[tuple[str, Exception]] = []
    bad = INJECTED[codec]

    def answer(event: Any) -> str:
        for number, (data, _) in enumerate(bad):
            event.sender.emit("order", number)
            event.sender.session.outbox.pending.append(data)
        event.sender.emit("order", len(bad))
        return "answer"

    server = Server(location, on_error=lambda event, error: errors.append((event.name, error)))
    with server, ticked(server), Client(server.location, codec=codec) as client:
        client.add_listener("order", got.append)
        server.add_listener("ask", answer, pass_event=True)
        assert client.request("ask", timeout=DEADLINE) == "answer"  # In one frame with the orders.
        wait_until(lambda: len(got) == len(bad) + 1 and len(errors) == len(bad))
        assert client.stats()["rejected"] == server.stats()["undecodable_there"] == len(bad)
    assert got == [*range(len(bad) + 1)]
    assert [name for name, _ in errors] == [name for _, name in bad]
    assert all(isinstance(error, CodecError) for _, error in errors)
    assert logged_names(caplog) == [*dict.fromkeys(name for _, name in bad)]


def test_an_undecodable_request_or_reply_ends_the_request_with_an_error(location: Location) -> None:
    with Server(location) as server, ticked(server), Client(server.location) as client:
        server.add_listener("ask", lambda: "answer")
        assert client.request("ask", timeout=DEADLINE) == "answer"
        io = client_io(client)
        io.send_queue.pending.clear()
        encode = io.requests._codec.encode  # to send what no codec of this version encodes
        bad = {Cell(1, 2): 3}

        class Broken:
            name, join, decode = "msgpack", io.outbox._codec.join, io.outbox._codec.decode

            def encode(self, name: str, args: Any, kwargs: Any, headers: Any) -> bytes:
                return msgspec.msgpack.encode((name, (*args, bad) if name == REQUEST else args, kwargs, headers))

        io.requests._codec = Broken()  # type: ignore[assignment]
        with pytest.raises(RequestFailed, match="CodecError"):
            client.request("ask", timeout=DEADLINE)
        io.requests._codec.encode = encode  # type: ignore[method-assign]
        (session,) = sessions_of(server)

        def reply_badly() -> str:
            session.outbox.pending.append(msgspec.msgpack.encode((REPLY, (3, "done", bad))))
            return "too late"

        server.add_listener("bad", reply_badly)
        with pytest.raises(RequestError, match="the reply to 'bad' cannot be decoded"):
            client.request("bad", timeout=DEADLINE)
        assert server_io(server).machine.rejected["undecodable"] == 1


MOMENT = datetime.datetime(2024, 3, 1, 0, 30, tzinfo=datetime.timezone(datetime.timedelta(hours=5.5)))


@pytest.mark.parametrize("wrap", [lambda value: value, lambda value: {value: 1}, lambda value: [(value,)]])
def test_json_rejects_an_offset_that_its_text_would_round(wrap: Callable[[Any], Any]) -> None:
    moment = MOMENT.replace(tzinfo=datetime.timezone(datetime.timedelta(seconds=1172)))
    with pytest.raises(CodecError, match=r"args\[0\].*(whole minute|a key of type datetime)"):
        find_codec("json").encode("moment", (wrap(moment),), {}, {})


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_aware_datetime_keeps_its_offset(location: Location, codec: str) -> None:
    got: list[Any] = []
    with Server(location) as server, ticked(server), Client(server.location, codec=codec) as client:

        @server.on("typed")
        def typed(moment: datetime.datetime, inner: dict[str, list[datetime.datetime]]) -> None:
            got.extend([moment, inner["at"][0]])

        @server.on("plain")
        def plain(moment: Any) -> None:
            got.append(moment if codec == "msgpack" else datetime.datetime.fromisoformat(moment))

        for moment in (MOMENT, datetime.datetime.min.replace(tzinfo=MOMENT.tzinfo), MOMENT.replace(tzinfo=None)):
            client.emit("typed", moment, {"at": [moment]})
        client.emit("plain", MOMENT)
        assert client.flush(DEADLINE)
    assert [value.isoformat() for value in got] == [
        *["2024-03-01T00:30:00+05:30"] * 2,
        *["0001-01-01T00:00:00+05:30"] * 2,
        *["2024-03-01T00:30:00"] * 2,
        "2024-03-01T00:30:00+05:30",
    ]


class Text(str):
    __slots__ = ()

    def __str__(self) -> str:
        return "overridden"


class Number(int):
    pass


@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_subclasses_and_foreign_scalars_arrive_as_plain_values(codec: str) -> None:
    got: list[Any] = []
    sent = (Text("a"), Number(3), Scalar(2.5, "f"), [Scalar(True, "b")], {"d": Decimal("1.5"), "t": Text("b")})
    with Server("memory://plain") as server, ticked(server), Client(server.location, codec=codec) as client:
        server.add_listener("x", lambda *args: got.extend(args))
        client.emit("x", *sent)
        client.emit(Text("x"), 1)
        assert client.flush(DEADLINE)
    assert got == ["a", 3, 2.5, [True], {"d": "1.5", "t": "b"}, 1]
    assert [type(value) for value in got[:2]] == [str, int]
