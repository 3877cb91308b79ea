"""Every value that a codec accepts arrives equal, apart from the conversions in the table of docs/patterns.md."""

from __future__ import annotations

import base64
import collections
import dataclasses
import datetime
import enum
import math
import os
import uuid
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.codec import CODECS, Codec, decode_event
from remit.errors import CodecError

COUNT = int(os.environ.get("REMIT_VALUES", "2000"))
"""Values for both codecs together."""
PER_EXAMPLE = 10
"""Values in one example: it saves most of what an example costs."""


@dataclasses.dataclass(frozen=True)
class Pair:
    left: Any
    right: Any = None


class Record(msgspec.Struct, frozen=True):
    value: Any


class Row(msgspec.Struct, array_like=True):
    value: Any


class Color(enum.Enum):
    RED = 1
    BLUE = "blue"
    BOTH = (1, "blue")


class Level(enum.IntEnum):
    LOW = 1


Named = collections.namedtuple("Named", "first second")


class Text(str):
    __slots__ = ()


class Number(int):
    pass


OFFSETS = st.none() | st.builds(
    datetime.timezone, st.integers(-1439, 1439).map(lambda minutes: datetime.timedelta(minutes=minutes))
)
ODD_OFFSETS = [datetime.timedelta(seconds=19 * 60 + 32), datetime.timedelta(microseconds=1)]
ZONES = OFFSETS | st.timezones() | st.sampled_from(list(map(datetime.timezone, ODD_OFFSETS)))
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(-(2**64), 2**65)
    | st.floats()
    | st.text(st.characters(codec=None))
    | st.binary()
    | st.binary().map(bytearray)
    | st.binary().map(lambda data: memoryview(data)[::2])
    | st.datetimes(timezones=ZONES, allow_imaginary=False)
    | st.dates()
    | st.times(timezones=OFFSETS)
    | st.timedeltas()
    | st.decimals()
    | st.uuids()
    | st.sampled_from([*Color, *Level])
    | st.text().map(Text)
    | st.integers(-(2**63), 2**63).map(Number)
    | st.sampled_from([object(), 1j, msgspec.UNSET, print])
)
HASHABLE = st.recursive(
    SCALARS.filter(lambda value: not isinstance(value, bytearray | memoryview) and str(value) not in ("sNaN", "-sNaN")),
    lambda inner: (
        st.tuples(inner, inner) | st.builds(Pair, inner) | st.frozensets(inner, max_size=2) | st.builds(Record, inner)
    ),
    max_leaves=3,
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.text(max_size=3), inner, max_size=4)
        | st.dictionaries(HASHABLE, inner, max_size=3)
        | st.tuples(inner, inner)
        | st.builds(Named, inner, inner)
        | st.sets(HASHABLE, max_size=2)
        | st.builds(Pair, inner, inner)
        | st.builds(Record, inner)
        | st.builds(Row, inner)
        | inner.map(lambda value: [[[value] * 2]] * 2)
    ),
    max_leaves=8,
)


def expected(value: Any, codec: str, *, key: bool = False) -> Any:
    """Return what the table says that ``value`` arrives as. Sets become lists in the order of this process."""
    if isinstance(value, enum.Enum):
        return expected(value.value, codec, key=key)
    if dataclasses.is_dataclass(value):
        fields = {"left": value.left, "right": value.right}
        return {name: expected(inner, codec) for name, inner in fields.items() if inner is not msgspec.UNSET}
    if isinstance(value, Record):
        return {} if value.value is msgspec.UNSET else {"value": expected(value.value, codec)}
    if isinstance(value, Row):
        return [expected(value.value, codec)]
    if isinstance(value, dict):
        return {expected(name, codec, key=True): expected(inner, codec) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return (tuple if key else list)(expected(inner, codec, key=key) for inner in value)
    return expected_scalar(value, codec == "json", key)


def expected_scalar(value: Any, json: bool, key: bool) -> Any:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode() if json else bytes(value)
    if isinstance(value, datetime.datetime) and value.tzinfo is not None and not json:
        return value.astimezone(datetime.UTC) if key else value
    if isinstance(value, datetime.date | datetime.time | datetime.timedelta | Decimal | uuid.UUID):
        return AsText(value)
    if isinstance(value, float) and json and not math.isfinite(value) and not key:
        return None
    if json and key and isinstance(value, int | float):
        return AsText(value)
    return value


class AsText:
    """Equal to a text that stands for the value."""

    def __init__(self, value: Any) -> None:
        self.value = value

    def __hash__(self) -> int:
        return hash(self.value)

    def __eq__(self, other: object) -> bool:
        return (isinstance(other, AsText) and self.value == other.value) or (
            isinstance(other, str) and same(convert(other, type(self.value)), self.value)
        )


def convert(text: str, kind: type) -> Any:
    return kind(text) if issubclass(kind, int | float | Decimal) else msgspec.convert(text, kind)


def same(one: Any, other: Any) -> bool:
    """Compare values, and also types and offsets, which == ignores."""
    if isinstance(other, AsText):
        return bool(other == one)
    if isinstance(one, dict) and isinstance(other, dict):
        return len(one) == len(other) and all(
            same(*names) and same(one[names[0]], other[names[1]]) for names in zip(one, other, strict=True)
        )
    if isinstance(one, list | tuple) and type(one) is type(other):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, datetime.datetime | datetime.time) and type(one) is type(other):
        return one.isoformat() == other.isoformat()
    if isinstance(one, float | Decimal) and isinstance(other, float | Decimal) and "nan" in str(other).lower():
        return str(one) == str(other)
    return bool(one == other) and (isinstance(other, Text | Number) or type(one) is type(other))


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_an_accepted_value_arrives_as_the_table_says(codec: Codec) -> None:
    accepted = 0

    @settings(
        max_examples=COUNT // len(CODECS) // PER_EXAMPLE,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.lists(VALUES, min_size=PER_EXAMPLE, max_size=PER_EXAMPLE))
    def check(values: list[Any]) -> None:
        nonlocal accepted
        for value in values:
            try:
                data = codec.encode("n", (value,), {}, {})
            except CodecError as error:
                assert "args[0]" in str(error)  # noqa: PT017 - whether it is raised depends on the value
                continue
            accepted += 1
            (arrived,) = decode_event(codec, data).args
            assert same(arrived, expected(value, codec.name)), (value, arrived)

    check()
    assert accepted > COUNT // 20


@pytest.mark.parametrize(
    "value",
    [
        memoryview(b"abcd")[::2],
        datetime.datetime(2024, 3, 1, tzinfo=datetime.timezone(datetime.timedelta(microseconds=1))),
        msgspec.msgpack.Ext(1, b"no datetime"),
        [msgspec.msgpack.Ext(1, b"2024-03-01 00:00+02:00")],
    ],
    ids=["strided", "offset", "extension", "nested extension"],
)
@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_a_value_that_would_not_arrive_is_rejected(codec: Codec, value: Any) -> None:
    with pytest.raises(CodecError, match=r"args\[0\]"):
        codec.encode("n", (value,), {}, {})


@pytest.mark.parametrize("codec", CODECS.values(), ids=CODECS.keys())
def test_a_member_of_an_enum_of_texts_names_an_event_by_its_value(codec: Codec) -> None:
    class Name(str, enum.Enum):  # noqa: UP042 - `str()` of a StrEnum is its value
        ORDER = "shop.order"

    zone = datetime.timezone(datetime.timedelta(hours=2))
    for value in (1, [1], datetime.datetime(2024, 3, 1, tzinfo=zone)):
        assert decode_event(codec, codec.encode(Name.ORDER, (value,), {}, {})).name == "shop.order"
