"""Plugins: each found by its scheme alone, refused with a reason, and none in its neighbours' way."""

from __future__ import annotations

import itertools
import subprocess
import sys
import threading
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest
from distributions import TRANSPORT, distribution

from remit.errors import BadLocation, SchemeClaimedTwice, TransportBroken, TransportNotInstalled
from remit.missing import explain_missing
from remit.plugins import (
    block_transport,
    find_transport,
    installed_transports,
    register_transport,
    unblock_transport,
    unregister_transport,
)
from remit.transports.memory import MemoryTransport

_numbers = itertools.count(1)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder on sys.path; what is imported from it is forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(tmp_path)):
            del sys.modules[name]


@pytest.fixture
def scheme() -> str:
    """A scheme that no other test has used: what was found stays found in this process."""
    return f"test{next(_numbers)}"


def claims(scheme: str) -> list[tuple[str, str, str]]:
    return [(each.distribution, each.version, each.error) for each in installed_transports() if each.scheme == scheme]


# -- finding ---------------------------------------------------------------------------------------------------


def test_a_transport_is_found_by_its_scheme_once_per_process(folder: Path, scheme: str) -> None:
    source = TRANSPORT.replace("return Named", "calls.append(scheme); return Named").replace(
        "class", "calls = []\nclass"
    )
    distribution(folder, "stranger", {scheme: f"{scheme}_plugin"}, {f"{scheme}_plugin": source})
    found = find_transport(scheme)
    assert find_transport(scheme) is found
    assert sys.modules[f"{scheme}_plugin"].calls == [scheme]  # type: ignore[attr-defined]


def test_one_module_may_claim_two_schemes(folder: Path, scheme: str) -> None:
    distribution(
        folder, "stranger", {f"{scheme}+a": "two_plugin", f"{scheme}+b": "two_plugin"}, {"two_plugin": TRANSPORT}
    )
    both = [find_transport(f"{scheme}+{each}") for each in "ab"]
    assert [each.scheme for each in both] == [f"{scheme}+a", f"{scheme}+b"]  # type: ignore[attr-defined]


def test_threads_that_ask_at_once_get_the_same_transport(folder: Path, scheme: str) -> None:
    distribution(folder, "stranger", {scheme: "many_plugin"}, {"many_plugin": TRANSPORT})
    barrier = threading.Barrier(8)
    found: list[object] = []

    def ask() -> None:
        barrier.wait(10)
        found.append(find_transport(scheme))

    threads = [threading.Thread(target=ask) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert len(found) == 8
    assert len(set(map(id, found))) == 1


def test_a_plugin_may_look_for_another_transport_while_it_is_loaded(folder: Path, scheme: str) -> None:
    source = "from remit.plugins import find_transport\ninner = find_transport('memory')\n" + TRANSPORT
    distribution(folder, "wrapper", {scheme: "wrapping_plugin"}, {"wrapping_plugin": source})
    assert find_transport(scheme).capabilities == find_transport("memory").capabilities


def test_what_is_in_the_box_comes_by_entry_points_too() -> None:
    loaded = {entry.name: entry.load() for entry in entry_points(group="remit") if entry.name in ("memory", "unix")}
    assert {name: module.__name__ for name, module in loaded.items()} == {
        "memory": "remit.transports.memory",
        "unix": "remit.transports.unix",
    }
    for name, module in loaded.items():
        assert module.remit_transport(scheme=name) is find_transport(name)


def test_what_is_in_the_box_costs_no_search() -> None:
    code = (
        "import sys; from remit.plugins import find_transport; find_transport('unix'); find_transport('memory');"
        "sys.exit('importlib.metadata' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=30, check=False).returncode == 0


# -- broken ones -----------------------------------------------------------------------------------------------

HOOK = "from remit.hookspecs import hookimpl\n@hookimpl\ndef remit_transport(scheme): "
BROKEN = {
    "import fails": ("import a_library_that_is_missing", ModuleNotFoundError, "a_library_that_is_missing"),
    "import raises": ("1 / 0", ZeroDivisionError, "division by zero"),
    "import exits": ("raise SystemExit(3)", SystemExit, "SystemExit: 3"),
    "syntax": ("def", SyntaxError, "invalid syntax"),
    "unknown hook": (
        "from remit.hookspecs import hookimpl\n@hookimpl\ndef remit_transports(): ...",
        Exception,
        "unknown hook",
    ),
    "wrong argument": (
        "from remit.hookspecs import hookimpl\n@hookimpl\ndef remit_transport(url): ...",
        Exception,
        "url",
    ),
    "hook raises": (HOOK + "raise OSError('no such device')", OSError, "no such device"),
    "hook returns None": (HOOK + "return None", None, "returned None"),
    "no hook": ("", None, "returned None"),
    "not a transport": (HOOK + "return object()", None, "no usable bind, connect, capabilities, options"),
    "a class": (
        "from remit.transports.memory import MemoryTransport\n" + HOOK + "return MemoryTransport",
        None,
        "instance",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_plugin_is_named_with_its_distribution_and_its_own_error(folder: Path, scheme: str, case: str) -> None:
    source, cause, words = BROKEN[case]
    module = f"{scheme}_broken"
    distribution(folder, "rotten-eggs", {scheme: module}, {module: source}, version="6.6")
    with pytest.raises(TransportBroken) as caught:
        find_transport(scheme)
    assert scheme in str(caught.value)
    assert "rotten-eggs 6.6" in str(caught.value)
    assert words in str(caught.value)
    assert isinstance(caught.value.__cause__, cause or type(None))


def test_an_interrupt_while_a_plugin_is_loaded_stays_one(folder: Path, scheme: str) -> None:
    distribution(folder, "slow", {scheme: "slow_plugin"}, {"slow_plugin": "raise KeyboardInterrupt"})
    with pytest.raises(KeyboardInterrupt):
        find_transport(scheme)


def test_a_broken_plugin_does_not_disturb_its_neighbours(folder: Path, scheme: str) -> None:
    distribution(folder, "rotten", {f"{scheme}a": "rotten_one"}, {"rotten_one": "1 / 0"})
    distribution(folder, "good", {f"{scheme}b": "good_one"}, {"good_one": TRANSPORT})
    assert find_transport(f"{scheme}b").scheme == f"{scheme}b"  # type: ignore[attr-defined]
    assert "rotten_one" not in sys.modules


def test_a_repaired_plugin_is_found_without_a_new_process(folder: Path, scheme: str) -> None:
    distribution(folder, "rotten", {scheme: "mended_one"}, {"mended_one": "1 / 0"})
    with pytest.raises(TransportBroken):
        find_transport(scheme)
    (folder / "mended_one.py").write_text(TRANSPORT + "# a length of its own, for the cache of bytecode\n")
    assert find_transport(scheme)


# -- claims ----------------------------------------------------------------------------------------------------


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


# -- blocking and registering ----------------------------------------------------------------------------------


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


# -- explaining ------------------------------------------------------------------------------------------------


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


def test_a_scheme_that_is_none_is_not_taken_for_a_blocked_one() -> None:
    with pytest.raises(TransportNotInstalled, match="no transport for ''"):
        find_transport("chaos+")
