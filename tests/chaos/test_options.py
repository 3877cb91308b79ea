"""Chaos is found around any transport, and tells its own options from that one's."""

from __future__ import annotations

import types

import pytest
from stationery import Desk

from remit import Location, Server
from remit.errors import BadLocation, FrameTooLarge, TransportNotInstalled, UnknownOption
from remit.plugins import (
    block_transport,
    find_transport,
    installed_transports,
    register_transport,
    unblock_transport,
    unregister_transport,
)
from remit.transport import Capabilities
from remit.transports.memory import MemoryTransport


def test_chaos_is_found_around_any_transport_and_never_listed() -> None:
    transport = find_transport("chaos+unix")
    assert transport.capabilities.lossy
    assert not find_transport("unix").capabilities.lossy
    assert set(transport.options) == {"max_frame", "seed", "loss", "duplication", "reorder", "delay", "cut"}
    assert not [claim for claim in installed_transports() if claim.scheme.startswith("chaos")]


def test_chaos_wraps_what_is_registered_now() -> None:
    ours = MemoryTransport()
    ours.capabilities = Capabilities(max_frame=12345)
    register_transport("desk", ours)
    try:
        assert find_transport("chaos+desk").capabilities.max_frame == 12345
    finally:
        unregister_transport("desk")
    with pytest.raises(TransportNotInstalled, match="'desk'"):
        find_transport("chaos+desk")


def test_chaos_around_what_is_not_there_says_what_is_missing() -> None:
    with pytest.raises(TransportNotInstalled, match=r"no transport for 'unixx' is installed.*did you mean 'unix'"):
        Server("chaos+unixx:///tmp/a.sock")


@pytest.mark.parametrize("blocked", ["unix", "chaos+unix"])
def test_blocking_reaches_chaos_too(blocked: str) -> None:
    block_transport(blocked)
    try:
        with pytest.raises(TransportNotInstalled, match="blocked"):
            find_transport("chaos+unix")
    finally:
        unblock_transport(blocked)


@pytest.mark.parametrize(
    ("query", "error", "reason"),
    [
        ("loss=1.5", BadLocation, "loss='1.5'.*from 0 to 1"),
        ("loss=nan", BadLocation, "loss='nan'.*from 0 to 1"),
        ("cut=-0.1", BadLocation, "cut='-0.1'.*from 0 to 1"),
        ("reorder=often", BadLocation, "reorder='often'"),
        ("seed=-1", BadLocation, "seed='-1'.*whole number from 0"),
        ("delay=soon", BadLocation, "delay='soon'"),
        ("lost=0.1", UnknownOption, "'lost'.*'loss'"),
        ("capacity=none", BadLocation, "capacity='none'"),
    ],
)
def test_bad_options_are_refused(query: str, error: type[Exception], reason: str) -> None:
    with pytest.raises(error, match=reason):
        Server(f"chaos+memory://options?{query}")


def test_the_wrapped_transport_gets_its_own_options_only(clock: types.SimpleNamespace) -> None:
    desk = Desk("bind", "paper=white&loss=0.1&seed=4")
    assert desk.inner.asked == [Location("note://x?paper=white")]
    assert desk.link.location == Location("chaos+note://x?paper=white&loss=0.1&seed=4")


def test_frames_over_the_limit_are_refused_first(clock: types.SimpleNamespace) -> None:
    with pytest.raises(FrameTooLarge):
        Desk("bind", "loss=1").link.send("p", b"x" * 101)
