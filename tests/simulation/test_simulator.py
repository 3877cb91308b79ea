"""The simulator: some seeds hold, one seed is one history, and a failure says how to see it again."""

from __future__ import annotations

import shlex
from collections import Counter
from pathlib import Path

import pytest
from engine.simulator import SimulationFailed, main, simulate

from remit._protocol.outbox import Outbox

MAKEFILE = Path(__file__).parents[2] / "Makefile"


@pytest.mark.parametrize("seed", [1, 2])
def test_what_is_promised_holds(seed: int) -> None:
    report = simulate(seed, events=20_000, clients=100)
    assert report.events >= 20_000
    assert report.counts["frames"] > 1000


def test_what_is_promised_holds_in_a_storm() -> None:
    assert simulate(6, events=10_000, clients=60, storm=True).counts["lost"] > 1000


def test_many_short_histories_with_every_kind_of_fault() -> None:
    counts: Counter[str] = Counter()
    for seed in range(100, 112):
        counts += simulate(seed, events=2_000, clients=20).counts
    assert set(counts) >= {
        "DeadLetter",
        "NoListener",
        "PeerLost",
        "RequestFailed",
        "RequestTimeout",
        "client crashes",
        "cuts",
        "duplicated",
        "frames",
        "gaps",
        "jobs given",
        "lost",
        "overtaken",
        "pairs",
        "pairs busy",
        "pairs lost",
        "partitions",
        "publications heard",
        "questions answered",
        "questions given up",
        "server restarts",
        "signals",
        "stalls",
        "subscriptions ended",
        "workers killed",
    }


def test_a_seed_is_one_history() -> None:
    assert simulate(7, events=5_000, clients=50) == simulate(7, events=5_000, clients=50)
    assert simulate(7, events=5_000, clients=50) != simulate(8, events=5_000, clients=50)


def test_it_tells_totals_and_the_rate(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--seed", "3", "--seeds", "2", "--events", "1000", "--clients", "10"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines[:3]] == ["seed 3", "seed 4", "2 seeds, 0 failed"]
    assert "events/s" in lines[3]


def test_a_failure_says_the_command_that_replays_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Outbox, "resend_unreceived", lambda self: None)
    assert main(["--seeds", "10", "--events", "1000", "--clients", "10"]) == 1
    lines = capsys.readouterr().out.splitlines()
    failed = next(number for number, line in enumerate(lines) if "FAILED" in line)
    command = shlex.split(next(line for line in lines[failed:] if line.startswith("replay: ")).removeprefix("replay: "))
    assert command[:2] == ["make", "simulate"]
    chosen = dict(word.split("=") for word in command[2:])
    assert set(chosen) == {"SEED", "SEEDS", "EVENTS", "CLIENTS"}
    assert all(f"{name} ?=" in MAKEFILE.read_text() for name in chosen)
    with pytest.raises(SimulationFailed) as again:
        simulate(int(chosen["SEED"]), events=int(chosen["EVENTS"]), clients=int(chosen["CLIENTS"]))
    assert f"seed {chosen['SEED']}: FAILED: {again.value}" == lines[failed]
