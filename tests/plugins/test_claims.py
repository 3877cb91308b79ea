"""Claims: of two neither is chosen, and a program may block or register what it likes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
from distributions import TRANSPORT, distribution

from remit.errors import BadLocation, SchemeClaimedTwice, TransportBroken, TransportNotInstalled
from remit.plugins import (
    block_transport,
    find_transport,
    installed_transports,
    register_transport,
    unblock_transport,
    unregister_transport,
)
from remit.transports.memory import MemoryTransport


def claims(scheme: str) -> list[tuple[str, str, str]]:
    return [(each.distribution, each.version, each.error) for each in installed_transports() if each.scheme == scheme]


def test_two_claimants_of_a_scheme_are_both_named(folder: Path, scheme: str) -> None:
    for name in ("first", "second"):
        distribution(folder, f"{name}-claim", {scheme: f"{name}_claim"}, {f"{name}_claim": TRANSPORT}, version="2.0")
    with pytest.raises(SchemeClaimedTwice, match=r"(first|second)-claim 2\.0 and (first|second)-claim 2\.0"):
        find_transport(scheme)
    assert sorted(claims(scheme)) == [
        ("first-claim", "2.0", "claimed twice: also by second-claim 2.0"),
        ("second-claim", "2.0", "claimed twice: also by first-claim 2.0"),
    ]


def test_a_distribution_that_is_listed_twice_is_one(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, scheme: str
) -> None:
    distribution(folder, "the-same", {scheme: "same_plugin"}, {"same_plugin": TRANSPORT})
    again = tmp_path_factory.mktemp("again")
    distribution(again, "The_Same", {scheme: "same_plugin"})
    monkeypatch.syspath_prepend(str(again))
    assert len(claims(scheme)) == 1
    assert find_transport(scheme)


def test_a_second_claimant_of_what_is_in_the_box_is_reported_and_not_used(folder: Path) -> None:
    distribution(folder, "intruder", {"unix": "intruder"}, {"intruder": "1 / 0"})
    errors = {distribution: error for distribution, _, error in claims("unix")}
    assert errors == {"remit": "", "intruder": "not used: remit itself claims 'unix'"}
    assert type(find_transport("unix")).__module__ == "remit.transports.unix"


def test_listing_imports_no_plugin(folder: Path, scheme: str) -> None:
    distribution(folder, "unlisted", {scheme: "never_imported"}, {"never_imported": "1 / 0"}, version="0.3")
    assert claims(scheme) == [("unlisted", "0.3", "")]
    assert "never_imported" not in sys.modules


@pytest.mark.parametrize("way", ["call", "environment"])
def test_a_blocked_scheme_is_refused_even_after_it_was_found(
    folder: Path, scheme: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    distribution(folder, "blockable", {scheme: "blockable"}, {"blockable": TRANSPORT})
    assert find_transport(scheme)
    if way == "call":
        block_transport(scheme)
    else:
        monkeypatch.setenv("REMIT_BLOCK", f"other, {scheme}")
    reason = "block_transport" if way == "call" else "REMIT_BLOCK"
    with pytest.raises(TransportNotInstalled, match=f"'{scheme}' is blocked by {reason}"):
        find_transport(scheme)
    assert claims(scheme)[0][2].startswith(f"blocked by {reason}")
    unblock_transport(scheme)
    monkeypatch.delenv("REMIT_BLOCK", raising=False)
    assert find_transport(scheme)


def test_a_registered_transport_is_found_until_it_is_taken_back(scheme: str) -> None:
    transport = MemoryTransport()
    register_transport(scheme, transport)
    register_transport(scheme, transport)
    assert find_transport(scheme) is transport
    with pytest.raises(SchemeClaimedTwice, match="registered already"):
        register_transport(scheme, MemoryTransport())
    assert claims(scheme) == [("", "", "")]
    unregister_transport(scheme)
    unregister_transport(scheme)
    with pytest.raises(TransportNotInstalled):
        find_transport(scheme)


@pytest.mark.parametrize("scheme", ["", "Upper", "with space", "a://", "1st"])
def test_only_a_scheme_can_be_registered(scheme: str) -> None:
    with pytest.raises(BadLocation, match="not a URL scheme"):
        register_transport(scheme, MemoryTransport())


def test_only_a_transport_can_be_registered(scheme: str) -> None:
    nothing: Any = object()
    with pytest.raises(TransportBroken, match="no usable bind"):
        register_transport(scheme, nothing)


def test_a_scheme_that_is_none_is_not_taken_for_a_blocked_one() -> None:
    with pytest.raises(TransportNotInstalled, match="no transport for ''"):
        find_transport("chaos+")
