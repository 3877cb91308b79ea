"""Explaining: what to install for a scheme that nobody claims."""

from __future__ import annotations

import pytest

from remit.errors import TransportNotInstalled
from remit.plugins import (
    explain_missing,
    find_transport,
)


@pytest.fixture
def extras(monkeypatch: pytest.MonkeyPatch) -> None:
    """The extras of an installed remit, and none of their distributions."""
    from importlib import metadata

    requirements = [f"remit-{name}; extra == '{name}'" for name in ("zeromq", "redis", "nng")]
    everything = [f"remit-{name}; extra == 'all'" for name in ("zeromq", "redis", "nng")]
    monkeypatch.setattr(metadata, "requires", lambda name: ["msgspec>=0.20", *requirements, *everything])

    def version(name: str) -> str:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "version", version)


@pytest.mark.parametrize(
    ("scheme", "installed", "advice"),
    [
        ("redis", ["memory", "unix"], "try: pip install 'remit[redis]'"),
        ("rediss", ["memory"], "try: pip install 'remit[redis]'"),
        ("zmq+tcp", ["memory"], "try: pip install 'remit[zeromq]'"),
        ("zmq", ["memory"], "try: pip install 'remit[zeromq]'"),
        ("nng+ipc", ["memory"], "try: pip install 'remit[nng]'"),
        ("rdeis", ["memory"], "did you mean 'redis'? try: pip install 'remit[redis]'"),
        ("tcp", ["a+ipc", "a+tcp", "b+tcp"], "did you mean 'a+tcp' or 'b+tcp'?"),
        ("unx", ["memory", "unix"], "did you mean 'unix'?"),
        ("a+tpc", ["a+ipc", "a+tcp"], "did you mean 'a+tcp'?"),
        (
            "carrier-pigeon",
            ["unix"],
            "install a distribution that provides it: one with the entry point 'carrier-pigeon' in the group 'remit'",
        ),
    ],
)
def test_a_missing_transport_is_explained(extras: None, scheme: str, installed: list[str], advice: str) -> None:
    text = explain_missing(scheme, installed)
    assert text == f"no transport for {scheme!r} is installed (installed: {', '.join(installed)}); {advice}"


def test_an_installed_distribution_is_not_advised_again(extras: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: "1.0")
    assert "did you mean 'zmq+ipc' or 'zmq+tcp'?" in explain_missing("zmq", ["zmq+ipc", "zmq+tcp"])


def test_a_scheme_that_nobody_claims_is_refused_with_what_is_installed() -> None:
    with pytest.raises(
        TransportNotInstalled, match=r"no transport for 'carrierpigeon' is installed \(installed: memory, .*unix"
    ):
        find_transport("carrierpigeon")
