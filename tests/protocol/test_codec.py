"""Events to bytes and back, by each codec."""

from __future__ import annotations

import datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from remit.codec import CODECS, Codec, find_codec
from remit.errors import CodecError

PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
FINITE = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.fixture(params=sorted(CODECS))
def codec(request: pytest.FixtureRequest) -> Codec:
    return CODECS[request.param]


@settings(suppress_health_check=[HealthCheck.too_slow])  # It measures the load of the machine.
@given(
    st.lists(st.tuples(st.text(min_size=1), st.lists(PLAIN, max_size=3), st.dictionaries(st.text(), PLAIN, max_size=2)))
)
def test_messagepack_gives_back_what_it_was_given(events: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    give_back(CODECS["msgpack"], events)


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.lists(FINITE, max_size=3), st.dictionaries(st.text(), FINITE, max_size=2))
    )
)
def test_json_gives_back_what_it_was_given(events: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    give_back(CODECS["json"], events)


def give_back(codec: Codec, events: list[tuple[str, list[Any], dict[str, Any]]]) -> None:
    encoded = [codec.encode(name, tuple(args), kwargs, {}) for name, args, kwargs in events]
    body = codec.join(b"head", encoded)
    assert body.startswith(b"head")
    wires = codec.decode(memoryview(body)[4:])
    assert [(wire.name, list(wire.args), wire.kwargs) for wire in wires] == events


@pytest.mark.parametrize("count", [0, 1, 15, 16, 65_535, 65_536])
def test_any_number_of_events_shares_a_frame(codec: Codec, count: int) -> None:
    event = codec.encode("n", (1,), {}, {})
    assert len(codec.decode(codec.join(b"", [event] * count))) == count


def test_headers_travel(codec: Codec) -> None:
    event = codec.encode("n", (1,), {"a": 2}, {"trace": "t"})
    assert codec.decode(codec.join(b"", [event]))[0].event().headers == {"trace": "t"}


def test_messagepack_carries_bytes_and_dates() -> None:
    codec = find_codec("msgpack")
    moment = datetime.datetime(2026, 1, 2, tzinfo=datetime.UTC)
    wire = codec.decode(codec.join(b"", [codec.encode("n", (b"\x00", moment), {}, {})]))[0]
    assert wire.args == (b"\x00", moment)


@given(st.binary())
def test_garbage_is_a_codec_error_and_nothing_else(garbage: bytes) -> None:
    for codec in CODECS.values():
        try:
            codec.decode(garbage)
        except CodecError:
            continue


@pytest.mark.parametrize("value", [object(), {1: object()}, print])
def test_what_cannot_travel_says_which_event(codec: Codec, value: object) -> None:
    with pytest.raises(CodecError, match="'mine'"):
        codec.encode("mine", (value,), {}, {})


def test_an_endless_value_is_refused(codec: Codec) -> None:
    loop: list[Any] = []
    loop.append(loop)
    with pytest.raises(CodecError):
        codec.encode("mine", (loop,), {}, {})


def test_an_unknown_codec_names_the_known_ones() -> None:
    with pytest.raises(CodecError, match="json, msgpack"):
        find_codec("pickle")
