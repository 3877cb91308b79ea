"""Arguments arrive as the types that the annotations of a listener name, or the error names listener and parameter."""

from __future__ import annotations

import datetime
import enum
import functools
import pathlib
import types
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, Literal, NamedTuple, ParamSpec, TypedDict, TypeVar

import msgspec
import pytest
from ticking import ticked
from waiting import DEADLINE

from remit import Client, Server
from remit._typed_listeners import bind, conversion
from remit.codec import CODECS, decode_event
from remit.errors import RequestFailed

if TYPE_CHECKING:
    from elsewhere import Logger


@dataclass
class Order:
    number: int


class Place(NamedTuple):
    x: int
    name: str


class Person(TypedDict):
    name: str


class Color(enum.Enum):
    RED = "red"


class Model:
    """Like a model of pydantic."""

    def __init__(self, number: int) -> None:
        self.number = number

    @classmethod
    def model_validate(cls, value: Any) -> Model:
        if not isinstance(value, dict):
            raise ValueError("not a valid dictionary")
        return cls(int(value["number"]))


class Handler:
    def method(self, order: Order) -> Any:
        return order

    def __call__(self, order: Order) -> Logger:
        return order  # type: ignore[return-value]

    @staticmethod
    def static(order: Order) -> Any:
        return order

    @classmethod
    def of_class(cls, order: Order) -> Any:
        return order


def wrapped(function: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    return call


def plain(order: Order) -> Any:
    return order


def two(prefix: str, order: Order) -> Any:
    return order


def unknown_return(order: Order) -> Logger:
    return order  # type: ignore[return-value]


def unknown_parameter(order: Order, log: Logger | None = None) -> Any:
    return order


AnyOrder = TypeVar("AnyOrder", bound=Order)


def bound(order: AnyOrder) -> AnyOrder:
    return order


def optional(order: Order = None) -> Any:  # type: ignore[assignment]
    return order


ORDER = Order(7)
DICT = {"number": 7}


@pytest.mark.parametrize(
    "listener",
    [
        plain,
        unknown_return,
        unknown_parameter,
        Handler(),
        Handler().method,
        Handler.static,
        Handler.of_class,
        functools.partial(two, "prefix"),
        functools.partial(two, prefix="prefix"),
        wrapped(plain),
        wrapped(functools.partial(two, "prefix")),
        bound,
        optional,
    ],
    ids=[
        "function",
        "unknown return",
        "unknown parameter",
        "callable",
        "method",
        "static",
        "of class",
        "partial",
        "partial keyword",
        "wrapped",
        "wrapped partial",
        "type variable",
        "None by default",
    ],
)
def test_every_kind_of_callable_is_typed(listener: Callable[..., Any]) -> None:
    assert answer(listener, order=DICT) == ORDER
    if not isinstance(listener, functools.partial) or not listener.keywords:
        assert answer(listener, DICT) == ORDER


def answer(listener: Callable[..., Any], *args: Any, codec: str = "msgpack", **kwargs: Any) -> Any:
    """Return what a listener returns for decoded arguments. A reply would convert the value once more."""
    message = decode_event(CODECS[codec], CODECS[codec].encode("x", args, kwargs, {}))
    return bind(listener, conversion(listener), message)()


def typed(annotation: Any) -> Callable[..., Any]:
    def listener(value: Any) -> Any:
        return value

    listener.__annotations__ = {"value": annotation, "return": "Nowhere"}
    return listener


@pytest.mark.parametrize(
    ("annotation", "sent", "received"),
    [
        (int, 3, 3),
        (float, 3, 3.0),
        (str, "a", "a"),
        (bytes, b"ab", b"ab"),
        (Place, [1, "a"], Place(1, "a")),
        (tuple[int, int], [1, 2], (1, 2)),
        (tuple[int, ...], [1, 2, 3], (1, 2, 3)),
        (Literal["a", "b"], "a", "a"),
        (pathlib.Path, "a/b", pathlib.Path("a/b")),
        (pathlib.Path | None, None, None),
        (list[pathlib.PurePosixPath], ["a"], [pathlib.PurePosixPath("a")]),
        (dict[str, Order], {"a": DICT}, {"a": ORDER}),
        (list["Order"], [DICT], [ORDER]),
        (str | bytes, b"a", b"a"),
        (Order | Place | None, [1, "a"], Place(1, "a")),
        (set[Color], ["red"], {Color.RED}),
        (Person, {"name": "a"}, {"name": "a"}),
        (Sequence[Order], [DICT], [ORDER]),
        (Annotated[int, msgspec.Meta(ge=1)], 1, 1),
        (Annotated[Order, {"not": "hashable"}], DICT, ORDER),
        (datetime.timedelta, datetime.timedelta(days=-3), datetime.timedelta(days=-3)),
        (Any, {"a": 1}, {"a": 1}),
        ("int", 5, 5),
    ],
    ids=str,
)
@pytest.mark.parametrize("codec", ["msgpack", "json"])
def test_an_argument_is_converted(codec: str, annotation: Any, sent: Any, received: Any) -> None:
    if codec == "json" and annotation == (str | bytes):
        pytest.skip("bytes are text in JSON")
    value = answer(typed(annotation), sent, codec=codec)
    assert (value, type(value)) == (received, type(received))


def test_each_of_several_arguments_is_converted() -> None:
    def listener(*orders: Order, **named: Order) -> Any:
        return orders, named

    assert answer(listener, DICT, DICT, a=DICT) == ((ORDER, ORDER), {"a": ORDER})


def test_a_name_of_an_enclosing_function_is_found_where_the_listener_is_registered() -> None:
    @dataclass
    class Local:
        number: int

    def listener(value: Local) -> Any:
        return type(value) is Local

    assert answer(listener, DICT) is True


def test_a_model_that_validates_itself_is_used() -> None:
    assert answer(typed(Model), {"number": "7"}).number == 7
    assert answer(typed(list[Model]), [DICT])[0].number == 7
    with Server("memory://typed") as server, ticked(server), Client(server.location) as client:
        server.add_listener("x", typed(Model))
        with pytest.raises(RequestFailed, match="parameter 'value' of listener listener: not a valid dictionary"):
            client.request("x", 5, timeout=DEADLINE)


@pytest.mark.parametrize(
    ("annotation", "sent", "message"),
    [
        (int, "5", "Expected `int`, got `str`"),
        (int, True, "Expected `int`, got `bool`"),
        (str, 5, "Expected `str`, got `int`"),
        (bytes, "!", "base64"),
        (Place, [1], "length 2"),
        (tuple[int, int], [1, 2, 3], "length 2"),
        (Literal["a"], "b", "Invalid enum value"),
        (pathlib.Path, 5, "Expected `Path`, got `int`"),
        (Order, {"number": "x"}, r"Expected `int`, got `str` - at `\$.number`"),
        (str | bytes, 5, "Expected `str`"),
    ],
    ids=str,
)
def test_an_argument_that_does_not_fit_names_listener_and_parameter(annotation: Any, sent: Any, message: str) -> None:
    with Server("memory://typed") as server, ticked(server), Client(server.location) as client:
        server.add_listener("x", typed(annotation))
        with pytest.raises(RequestFailed, match=f"parameter 'value' of listener listener: .*{message}"):
            client.request("x", sent, timeout=DEADLINE)


def test_an_annotation_that_converts_nothing_is_logged_at_registration(caplog: pytest.LogCaptureFixture) -> None:
    with Server("memory://typed") as server:
        server.add_listener("x", unknown_parameter)
        server.add_listener("x", typed(types.ModuleType))
        server.add_listener("x", Handler())  # Its unknown annotation is that of the return value.
        server.add_listener("x", print)
    assert [record.message for record in caplog.records] == [
        "parameter 'log' of listener unknown_parameter is not converted: name 'Logger' is not defined",
        "parameter 'value' of listener listener is not converted: no value can be converted to module; "
        "use a dataclass, or annotate it with Any",
    ]


@pytest.mark.parametrize(
    "annotation",
    [Callable[[int], int], Iterable[int], type[int], deque[int], list[Counter[str]], Order | OrderedDict[str, int]],
    ids=str,
)
def test_an_argument_without_a_conversion_arrives_as_received(
    annotation: Any, caplog: pytest.LogCaptureFixture
) -> None:
    assert answer(typed(annotation), DICT) == DICT
    (record,) = caplog.records
    assert "parameter 'value' of listener listener is not converted: no value can be" in record.message


def test_any_arguments_fit_a_parameter_specification(caplog: pytest.LogCaptureFixture) -> None:
    some = ParamSpec("some")

    def listener(*args: some.args, **kwargs: some.kwargs) -> Any:
        return args, kwargs

    assert answer(listener, 1, a=2) == ((1,), {"a": 2})
    assert not caplog.records


def test_none_fits_a_default_of_none() -> None:
    assert answer(optional, None) is None
    with pytest.raises(msgspec.ValidationError, match="parameter 'order' of listener optional"):
        answer(optional, 5)


def test_a_decorated_listener_may_take_other_arguments_than_its_function() -> None:
    @functools.wraps(two)
    def listener(*args: Any) -> Any:
        return two(*args[1:])

    assert answer(listener, 5, "prefix", DICT) == DICT


def test_wrong_numbers_of_arguments_are_reported_as_by_a_call() -> None:
    def listener(name: str, number: int = 3) -> Any:
        return name, number

    assert answer(listener, "a") == ("a", 3)
    assert answer(listener, "a", 4) == ("a", 4)
    assert answer(listener, "a", number=5) == ("a", 5)
    with Server("memory://typed") as server, ticked(server), Client(server.location) as client:
        server.add_listener("x", listener)
        for args, kwargs in (((), {}), (("a", 1, 2), {}), (("a",), {"other": 1})):
            with pytest.raises(RequestFailed, match=r"TypeError: .*listener\(\) "):
                client.request("x", *args, timeout=DEADLINE, **kwargs)
