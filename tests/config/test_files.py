"""Files: what may stand in them, what they say of what may not, and when they are read again."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest

from remit import Location
from remit.config import resolve
from remit.errors import BadLocation, LocationError, UnknownOption


@pytest.mark.parametrize(
    ("table", "url"),
    [
        ('url = "memory://a?x=1"\ny = 2', "memory://a?x=1&y=2"),
        ('host = "10.0.0.7"\nport = 5555', "zmq+tcp://10.0.0.7:5555"),
        (
            'host = "10.0.0.7"\nport = 5555\ntransport = "wide"\nprefix = "p"\nflag = true',
            "wide://10.0.0.7:5555?flag=true&prefix=p",
        ),
        ('url = "10.0.0.7:5555"', "zmq+tcp://10.0.0.7:5555"),
    ],
)
def test_a_named_location_may_be_a_table(table: str, url: str, project: Path) -> None:
    (project / "remit.toml").write_text(f"[locations.events]\n{table}")
    assert resolve("events").url == url


BAD_FILES = {
    "not TOML": ("url = ", BadLocation, "cannot read"),
    "not a table": ("locations = 3", BadLocation, "expected a table, got a whole number"),
    "not a text": ("url = 3", BadLocation, "'url' in "),
    "empty": ('transport = " "', BadLocation, "that is not blank"),
    "a typing error": ('transprot = "zmq"', UnknownOption, "unknown key 'transprot'; did you mean 'transport'?"),
    "an unknown key": ("colour = 1", UnknownOption, "(known: locations, transport, url)"),
    "no address": ("locations.events = {linger = 2}", BadLocation, "needs a 'url', or a 'host' and a 'port'"),
    "two addresses": (
        'locations.events = {url = "memory://a", host = "b"}',
        BadLocation,
        "both 'url' and 'host'",
    ),
    "no port": ('locations.events = {host = "b"}', BadLocation, "'port'"),
    "two ports": ('locations.events = {url = "a:1", port = 2}', BadLocation, "both 'url' and 'port'"),
    "two transports": ('locations.events = {url = "a:1", transport = "b"}', BadLocation, "both 'url' and 'transport'"),
    "a bad port": ('locations.events = {host = "b", port = 70000}', BadLocation, "70000"),
    "a port as text": (
        'locations.events = {host = "b", port = "1"}',
        BadLocation,
        "expected a whole number, got a string",
    ),
    "a table in a table": ('locations.events = {url = "a:1", x = {y = 1}}', BadLocation, "'x'"),
    "a number": ("locations.events = 5", BadLocation, "expected a string or a table"),
    "no URL": ('locations.events = "nowhere"', BadLocation, "neither a URL nor host:port"),
}


@pytest.mark.parametrize("case", BAD_FILES)
def test_a_bad_file_is_refused_with_its_path(case: str, project: Path) -> None:
    content, kind, words = BAD_FILES[case]
    (project / "remit.toml").write_text(content)
    with pytest.raises(kind) as caught:
        resolve("events")
    assert words in str(caught.value)
    assert str(project / "remit.toml") in str(caught.value)


def test_a_reference_is_filled_from_the_environment(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "remit.toml").write_text(
        'url = "wide://user:${SECRET}@${HOST}:${PORT}/0"\nlocations.all = "${WHOLE}"\n'
        '[locations.table]\nurl = "memory://a"\nx = "${SECRET}"'
    )
    for name, value in (("SECRET", "p@ss/w:rd#%"), ("HOST", "db"), ("PORT", "6379"), ("WHOLE", "memory://whole")):
        monkeypatch.setenv(name, value)
    location = resolve()
    assert (location.password, location.host, location.port) == ("p@ss/w:rd#%", "db", 6379)
    assert resolve("all") == Location("memory://whole")
    assert dict(resolve("table").options) == {"x": "p@ss/w:rd#%"}


def test_a_reference_to_nothing_is_refused(project: Path) -> None:
    (project / "remit.toml").write_text('url = "wide://user:${SECRET_OF_TEST}@db"')
    with pytest.raises(BadLocation, match=r"'url' in .*remit.toml refers to \$\{SECRET_OF_TEST\}, which is not set"):
        resolve()


@pytest.mark.parametrize("source", ["environment", "file"])
def test_a_password_is_not_told_in_errors(source: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url = "wide://user:hunter2@db:port"
    if source == "environment":
        monkeypatch.setenv("REMIT_URL", url)
    else:
        (project / "remit.toml").write_text(f'url = "{url}"')
    with pytest.raises(LocationError) as caught:
        resolve()
    assert "hunter2" not in str(caught.value)
    assert "REMIT_URL" in str(caught.value) or "remit.toml" in str(caught.value)


def test_a_file_is_read_once_and_again_when_it_has_changed(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = project / "remit.toml"
    path.write_text('url = "memory://first"')
    reads: list[str] = []
    parse = tomllib.loads
    monkeypatch.setattr(tomllib, "loads", lambda text: reads.append(text) or parse(text))
    assert resolve() == resolve() == Location("memory://first")
    assert len(reads) == 1
    path.write_text('url = "memory://second one"')
    assert resolve() == Location("memory://second one")
    assert len(reads) == 2
