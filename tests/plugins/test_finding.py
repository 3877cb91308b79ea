"""Finding: a transport comes from the one plugin that claims its scheme, and no other is touched."""

from __future__ import annotations

import subprocess
import sys
import threading
from importlib.metadata import entry_points
from pathlib import Path

from distributions import TRANSPORT, distribution

from remit.plugins import (
    find_transport,
)


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
