"""The suite from the wheel: a stranger's transport is put to the contract where nothing of this checkout is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
import tutorial

if TYPE_CHECKING:
    from conftest import Environment

pytestmark = pytest.mark.timeout(300)  # the first test waits for the wheels, whose tools may have to be downloaded


def test_a_strangers_transport_passes_without_pytest(equipped: Environment) -> None:
    done = equipped.run("remit", "conformance", "plain+tcp://127.0.0.1:0", "--json")
    assert (done.returncode, done.stderr) == (0, "")
    verdicts = {check["name"]: check["verdict"] for check in json.loads(done.stdout)["checks"]}
    assert verdicts.pop("peers_are_attested") == "not applicable"
    assert len(verdicts) > 40
    assert {name for name, verdict in verdicts.items() if verdict != "passed"} == {
        "a_cut_is_reported",
        "a_restart_is_reported",
        "a_stalled_peer_blocks_no_call",
    }


def test_the_table_shows_it(equipped: Environment) -> None:
    done = equipped.run("remit", "conformance", "--table")
    assert [line.split()[1] for line in done.stdout.splitlines()[2:]] == ["`memory`", "`plain+tcp`", "`unix`"]


def test_the_page_says_how_long_the_transport_is() -> None:
    lines = [line.strip() for line in tutorial.files()[tutorial.MODULE].splitlines()]
    code = [line for line in lines if line and not line.startswith(("#", '"""', "import ", "from "))]
    assert len(code) <= 150
    assert "in 150 lines of code" in tutorial.PAGE.read_text()
