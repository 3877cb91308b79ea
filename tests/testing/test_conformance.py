"""`remit conformance`: what it prints, and how it ends."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from mutants import MutantTransport
from mutants.life import ReceivesNothingOnceClosed

from remit.cli import main
from remit.plugins import register_transport, unregister_transport
from remit.testing import CHECKS, Verdict
from remit.testing.report import capability_table


@pytest.fixture
def broken() -> Iterator[str]:
    register_transport("broken", MutantTransport(ReceivesNothingOnceClosed, crosses_processes=True))
    yield "broken://here"
    unregister_transport("broken")


def test_what_passes_ends_with_0(short_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", f"unix://{short_path}/a.sock"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "passed           1  Any bytes arrive unchanged, in both directions." in lines
    assert lines[-1].endswith(" passed, 0 failed, 4 not applicable")
    assert len([line for line in lines if line.startswith(("passed", "not applicable"))]) == len(CHECKS)


def test_what_fails_ends_with_1_and_says_why(broken: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", broken, "--deadline", "2"]) == 1
    text = capsys.readouterr().out
    assert "failed          12  Link.close may be called twice" in text
    assert "a_closed_link_says_so: receive does not raise LinkClosed" in text


def test_the_report_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "memory://here", "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["location"] == "memory://here"
    assert report["capabilities"]["crosses_processes"] is False
    assert [each["name"] for each in report["checks"]] == [check.name for check in CHECKS]
    assert {each["verdict"] for each in report["checks"]} == {Verdict.PASSED.value, Verdict.NOT_APPLICABLE.value}
    reasons = {each["name"]: each["reason"] for each in report["checks"]}
    assert reasons["any_bytes_pass"] is None
    assert reasons["another_process_is_reached"].startswith("crosses_processes is not declared and does not work: ")


def test_the_table_has_a_row_for_each_transport(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", "--table"]) == 0
    shown = capsys.readouterr().out
    assert shown == capability_table() + "\n"
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in shown.splitlines()]
    assert rows[0][:3] == ["scheme", "max_frame", "window"]
    table = {row[0]: dict(zip(rows[0], row, strict=True)) for row in rows[2:]}
    assert table["`memory`"]["crosses_processes"] == "-"
    assert table["`unix`"]["max_frame"] == "16 MiB"
    assert table["`unix`"]["crosses_processes"] == "yes"
    assert {"`memory`", "`unix`"} <= table.keys()


@pytest.mark.parametrize("arguments", [[], ["memory://a", "--table"]])
def test_a_location_or_the_table_is_asked_for(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["conformance", *arguments])
    assert caught.value.code == 2


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("carrierpigeon://a", "no transport for 'carrierpigeon' is installed"),
        ("unix:///no/such/folder/a.sock", "/no/such/folder/a.sock-c-"),
        ("unix:///", "has neither a port, nor a path, nor a name"),
    ],
)
def test_what_cannot_be_tried_is_told_in_one_line(url: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["conformance", url]) == 2
    shown = capsys.readouterr()
    assert shown.out == ""
    assert words in shown.err
    assert len(shown.err.splitlines()) == 1
