"""What is given: a URL, a host and a port, a name, or nonsense."""

from __future__ import annotations

from pathlib import Path

import pytest

from remit import Location
from remit.config import resolve
from remit.errors import BadLocation, UnknownLocation


def test_a_location_with_a_scheme_is_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_URL", "memory://other")
    location = Location("whatever+tcp://host:1?option=2")
    assert resolve(location) is location


@pytest.mark.parametrize(
    ("transport", "scheme"), [("", "zmq+tcp"), ("pipes", "pipes+tcp"), ("wide", "wide"), ("pipes+tcp", "pipes+tcp")]
)
def test_host_and_port_get_the_configured_transport(
    transport: str, scheme: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", transport)
    assert resolve(Location("10.0.0.7", 5555, linger="2s")).url == f"{scheme}://10.0.0.7:5555?linger=2s"
    assert resolve("[::1]:5555").url == f"{scheme}://[::1]:5555"


@pytest.mark.parametrize("transport", ["unix", "memory"])
def test_a_transport_without_hosts_refuses_host_and_port(transport: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_TRANSPORT", transport)
    with pytest.raises(BadLocation, match=f"'{transport}' has no hosts and ports"):
        resolve("127.0.0.1:5555")


@pytest.mark.parametrize("text", ["", "two words", "unix:path", "/tmp/a.sock", "a/b"])
def test_what_is_neither_url_nor_name_is_refused(text: str) -> None:
    with pytest.raises(BadLocation, match="neither a URL"):
        resolve(text)


def test_an_unknown_name_is_refused_with_those_known_and_the_three_places(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (project / "remit.toml").write_text('locations.events = "memory://a"')
    monkeypatch.setenv("REMIT_JOBS_URL", "memory://b")
    with pytest.raises(UnknownLocation) as caught:
        resolve("evnts")
    for words in (
        "'evnts'",
        "events, jobs",
        "did you mean 'events'?",
        "REMIT_EVNTS_URL",
        "remit.toml",
        "pyproject.toml",
    ):
        assert words in str(caught.value)
