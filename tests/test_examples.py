"""The examples of the docs run, each over every transport."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from waiting import DEADLINE

EXAMPLES = Path(__file__).parents[1] / "docs/examples"


def run(name: str, *args: str) -> str:
    command = [sys.executable, str(EXAMPLES / name), *args]
    done = subprocess.run(command, capture_output=True, text=True, timeout=3 * DEADLINE, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.usefixtures("crossing_location")
def test_the_checksums(transport_name, request):
    """What ``make demo`` runs."""
    where = request.getfixturevalue("redis_url") if transport_name == "redis" else transport_name
    told = run("checksums.py", where)
    assert "processes, proven by " in told
    assert told.splitlines()[-1].startswith("all ")


def test_the_worker_pool(crossing_location):
    assert "200 answers from" in run("worker_pool.py", crossing_location.url)


@pytest.mark.usefixtures("crossing_location")
def test_the_relay(transport_name, request):
    where = request.getfixturevalue("redis_url") if transport_name == "redis" else transport_name
    assert run("relay.py", where).startswith("step 1, step 2, step 3: over")


def test_other_loops():
    lines = run("other_loops.py").splitlines()
    assert lines[0] == "doorman: [1, 2, 4, 8]"
    assert all(line.endswith(("[1, 2, 4, 8]", "not installed")) for line in lines)
    assert len(lines) == 4
