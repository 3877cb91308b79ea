"""The manager's core keeps its promises in any order of events, and a fault in its table is detected."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest
from tasks.mutants import MUTANTS
from tasks.simulator import SimulationFailed, main, simulate

from doorman._scheduler.lifecycle import TABLE

MAKEFILE = Path(__file__).parents[2] / "Makefile"
HISTORIES = 150
"""Histories in which a fault has to be detected."""
FIRST = {"descendants outlive their task": 19, "go before the journal": 93}
"""First seed for faults that only rare histories reveal."""


def test_every_promise_is_kept_in_many_histories() -> None:
    counts: Counter[str] = Counter()
    for seed in range(60):
        counts += simulate(seed)
    assert counts["attempts"] > 3_000
    assert set(counts) >= {
        "actions",
        "cancelled",
        "cancels",
        "closes",
        "descendants left",
        "done",
        "expired",
        "failed",
        "impostors",
        "journal failures",
        "kills",
        "left to the next manager",
        "lost",
        "lost messages",
        "repeated messages",
        "requests declined",
    }


def test_one_seed_is_one_history() -> None:
    assert simulate(11) == simulate(11)


@pytest.mark.parametrize("name", MUTANTS)
def test_a_fault_in_the_table_is_detected(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    row, phase, instead = MUTANTS[name]
    monkeypatch.setitem(TABLE[row], phase, instead)  # type: ignore[arg-type]
    with pytest.raises(SimulationFailed):
        simulate_many(FIRST.get(name, 0))


def simulate_many(first: int) -> None:
    for seed in range(first, first + HISTORIES):
        simulate(seed)


def test_a_run_says_what_it_has_done(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--attempts", "100"]) == 0
    told = capsys.readouterr().out
    assert "attempts" in told
    assert "every promise was kept" in told


def test_the_makefile_runs_it() -> None:
    [line] = [line for line in MAKEFILE.read_text().splitlines() if "tasks.simulator" in line]
    words = shlex.split(line.replace("$(SEED)", "1").replace("$(ATTEMPTS)", "1"))
    assert words[-4:] == ["--seed", "1", "--attempts", "1"]
