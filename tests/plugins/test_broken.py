"""Broken plugins: named with their distribution and their own error, and no harm to their neighbours."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from distributions import TRANSPORT, distribution

from remit.errors import TransportBroken
from remit.plugins import (
    find_transport,
)

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
