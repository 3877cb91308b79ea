"""Location: a value that survives the URL, the pickle and the dictionary, and keeps its password to itself."""

from __future__ import annotations

import copy
import pickle
import string
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from remit import Location
from remit.errors import BadLocation, LocationError, UnknownOption
from remit.location import read_count, read_flag, read_seconds, read_size

SPECIAL = st.sampled_from("/?#%@:&=+ []41")
TEXT = st.text(SPECIAL | st.characters(codec="utf-8", exclude_categories=["Cc", "Cs"]), max_size=12)
WORD = st.text(string.ascii_lowercase + string.digits + "_", min_size=1, max_size=8)
SCHEME = st.from_regex(r"[a-z][a-z0-9]{0,5}(\+[a-z]{1,4})?", fullmatch=True)
HOST = st.one_of(
    st.just(""),
    st.from_regex(r"[a-z0-9]([a-z0-9-]{0,8}[a-z0-9])?(\.[a-z]{2,3})?", fullmatch=True),
    st.ip_addresses(v=4).map(str),
    st.ip_addresses(v=6).map(str),
)
SECRET = "hunter2/?#@:%&= \u00fc"


@st.composite
def locations(draw: st.DrawFn) -> Location:
    """Any location that a URL can state."""
    host = draw(HOST)
    return Location("x://h").replace(
        scheme=draw(SCHEME),
        host=host,
        port=draw(st.none() | st.integers(0, 65535)) if host else None,
        path=draw(st.just("") | TEXT.map(lambda text: "/" + text.lstrip("/"))),
        username=draw(TEXT) if host else "",
        password=draw(TEXT) if host else "",
        options=draw(st.dictionaries(WORD, TEXT, max_size=3)),
    )


@given(locations())
def test_a_url_says_all_of_a_location(location: Location) -> None:
    assert Location(location.url) == location


@given(locations())
def test_a_location_survives_pickling_and_copying(location: Location) -> None:
    for protocol in range(2, pickle.HIGHEST_PROTOCOL + 1):
        again = pickle.loads(pickle.dumps(location, protocol))
        assert again == location
        assert hash(again) == hash(location)
        assert again.url == location.url
    assert copy.deepcopy(location) == location


@given(locations(), locations())
def test_two_locations_are_equal_when_their_urls_are(one: Location, other: Location) -> None:
    assert (one == other) == (one.url == other.url)
    assert len({one, other, Location(one.url)}) == (1 if one == other else 2)


PARAMETERS = ("self", "address", "port")
"""What cannot be given as an option by keyword; in a URL it can."""


@given(st.dictionaries(WORD.filter(lambda word: word not in PARAMETERS), TEXT, max_size=4))
@example({"a": ""})
def test_the_order_of_options_does_not_matter(options: dict[str, str]) -> None:
    forward = Location("memory://a", **options)
    backward = Location("memory://a", **dict(reversed(options.items())))
    assert forward == backward
    assert dict(Location(forward.url).options) == options


def test_a_location_cannot_be_changed() -> None:
    location = Location("memory://a")
    with pytest.raises(FrozenInstanceError, match="host"):
        location.host = "b"
    with pytest.raises(FrozenInstanceError):
        del location.host
    assert location.replace(host="b") == Location("memory://b")
    with pytest.raises(TypeError, match="colour"):
        location.replace(colour="red")


def test_host_and_port_leave_the_scheme_open() -> None:
    location = Location("::1", 5555, linger="2s")
    assert (location.scheme, location.host, location.port) == ("", "::1", 5555)
    assert str(location) == "[::1]:5555?linger=2s"


# -- passwords -------------------------------------------------------------------------------------------------


def told(location: Location) -> list[str]:
    """All that a location says of itself, in texts and in errors."""
    texts = [str(location), repr(location), f"{location}", f"{[location]}"]
    for call in (
        lambda: location.read({}),
        lambda: location.read({"linger": read_seconds}),
        lambda: setattr(location, "port", 1),
        lambda: Location(location.url, 5555),
        lambda: Location(location.url + "#fragment"),
        lambda: Location(location.url + "&linger=again"),
    ):
        with pytest.raises((LocationError, FrozenInstanceError)) as caught:
            call()
        texts.append(str(caught.value))
    return texts


@pytest.mark.parametrize("secret", ["hunter2", SECRET])
def test_a_password_is_never_told(secret: str) -> None:
    location = Location("wide://user@db:6379/0?linger=never").replace(password=secret)
    assert Location(location.url).password == secret
    for text in told(location):
        assert "hunter2" not in text


@pytest.mark.parametrize(
    "url",
    [
        "wide://user:hunter2@db:port/0",
        "wide://user:hunter2@db:99999/0",
        "wide://user:hunter2@[db/0",
        "wide://user:/hunter2@db/0",
        "wide://user:#hunter2@db/0",
        "wide://user:?hunter2@db/0",
        "wide://user:a@hunter2@db:port/0",
        "wide://user:hunter2#@db:1/0",
    ],
)
def test_a_password_is_not_told_when_its_url_cannot_be_read(url: str) -> None:
    with pytest.raises(BadLocation) as caught:
        Location(url)
    error: BaseException | None = caught.value
    while error is not None:
        assert "hunter2" not in str(error)
        error = error.__cause__


@pytest.mark.parametrize(
    "url", ["x://host:1/a@b", "x:///tmp/a@b", "x://[::1]/a@b", "x://host/a?b=c@d", "x://user@host:1/a@b"]
)
def test_an_at_sign_elsewhere_is_no_password(url: str) -> None:
    location = Location(url)
    assert location.password == ""
    assert Location(location.url) == location


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("",), "a URL or a host"),
        ((None,), "a URL or a host"),
        (("localhost",), "neither a URL nor a host with a port"),
        (("localhost", "5555"), "a port is a number"),
        (("localhost", True), "a port is a number"),
        (("localhost", 65536), "a port is a number from 0 to 65535"),
        (("local host", 1), "not a host name"),
        (("user@host", 1), "not a host name"),
        (("://host",), "has no scheme"),
        (("x://host:1#part",), "fragment"),
        (("x://host:1?a=1&a=2",), "given twice"),
        (("x://host:1", 2), "a URL and a separate port"),
    ],
)
def test_what_is_no_location_is_refused(arguments: tuple[Any, ...], words: str) -> None:
    with pytest.raises(BadLocation, match=words):
        Location(*arguments)


@given(st.text(max_size=30))
def test_any_text_is_read_or_refused(text: str) -> None:
    for address in (text, f"x://{text}"):
        try:
            location = Location(address)
        except BadLocation:
            continue
        assert isinstance(location.url, str)


@given(st.text(max_size=30))
@example(" ?")
def test_what_was_read_once_is_read_the_same_again(text: str) -> None:
    try:
        location = Location(f"x://{text}")
    except BadLocation:
        return
    assert Location(location.url) == location


# -- options ---------------------------------------------------------------------------------------------------

READERS = {"linger": read_seconds, "max_frame": read_size, "queue": read_count, "loud": read_flag}


def test_options_are_read_as_their_types() -> None:
    location = Location("x://h?linger=500ms&max_frame=1MiB&queue=7&loud=yes")
    assert location.read(READERS) == {"linger": 0.5, "max_frame": 1 << 20, "queue": 7, "loud": True}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("lingr", "x has no option 'lingr'; did you mean 'linger'?"),
        ("maxframe", "did you mean 'max_frame'?"),
        ("zzz", "(known: linger, loud, max_frame, queue)"),
    ],
)
def test_an_unknown_option_is_refused_with_the_nearest(option: str, words: str) -> None:
    with pytest.raises(UnknownOption) as caught:
        Location(f"x://h?{option}=1").read(READERS)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    "option",
    [
        "linger=soon",
        "linger=-1",
        "linger=nan",
        "linger=inf",
        "linger=",
        "max_frame=0",
        "queue=1.5",
        "queue=\u0663",
        "loud=?",
    ],
)
def test_an_option_that_cannot_be_read_is_refused(option: str) -> None:
    name, _, text = option.partition("=")
    with pytest.raises(BadLocation, match=f"option {name}="):
        Location("x://h", **{name: text}).read(READERS)
