"""Precedence: argument before environment before file before default."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from remit import Location
from remit.config import resolve

ARGUMENT = "argument"
ENVIRONMENT = "environment"
OWN_FILE = "remit.toml"
PROJECT_FILE = "pyproject.toml"
PARENT = "parent"
ORDER = (ARGUMENT, ENVIRONMENT, OWN_FILE, PROJECT_FILE, PARENT)
"""The sources, first the one that counts most."""


def define(source: str, project: Path, monkeypatch: pytest.MonkeyPatch, *, variable: str, own: str, tool: str) -> None:
    """Let one source say where to go."""
    if source == ENVIRONMENT:
        monkeypatch.setenv(variable, f"memory://{source}")
    elif source == OWN_FILE:
        (project / "remit.toml").write_text(own.format(url=f"memory://{source}"))
    elif source == PROJECT_FILE:
        (project / "pyproject.toml").write_text(tool.format(url=f"memory://{source}"))
    elif source == PARENT:
        (project.parent / "remit.toml").write_text(own.format(url=f"memory://{source}"))


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ORDER, 2)))
def test_the_unnamed_location_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (second, first):
        define(
            source, project, monkeypatch, variable="REMIT_URL", own='url = "{url}"', tool='[tool.remit]\nurl = "{url}"'
        )
    assert resolve("memory://argument" if first == ARGUMENT else None) == Location(f"memory://{first}")


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(ORDER[1:], 2)))
def test_a_named_location_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for source in (second, first):
        define(
            source,
            project,
            monkeypatch,
            variable="REMIT_BIG_EVENTS_2_URL",
            own='[locations]\n"big-events.2" = "{url}"',
            tool='[tool.remit.locations."big-events.2"]\nurl = "{url}"',
        )
    assert resolve("big-events.2") == Location(f"memory://{first}")


@pytest.mark.parametrize("source", ORDER[1:])
def test_every_source_goes_before_the_defaults(source: str, project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    define(source, project, monkeypatch, variable="REMIT_URL", own='url = "{url}"', tool='[tool.remit]\nurl = "{url}"')
    assert resolve(default="memory://callers") == resolve() == Location(f"memory://{source}")


def test_the_callers_default_goes_before_remits_own(project: Path) -> None:
    assert resolve(default="memory://callers") == Location("memory://callers")
    assert resolve().scheme == "unix"


@pytest.mark.parametrize(("first", "second"), list(itertools.combinations(("environment", "file", "default"), 2)))
def test_the_transport_of_host_and_port_comes_from_the_first_source(
    first: str, second: str, project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "environment" in (first, second):
        monkeypatch.setenv("REMIT_TRANSPORT", "wires")
    if "file" in (first, second):
        (project / "remit.toml").write_text('transport = "pipes"')
    scheme = {"environment": "wires+tcp", "file": "pipes+tcp"}[first]
    assert resolve(Location("127.0.0.1", 5555)) == resolve("127.0.0.1:5555") == Location(f"{scheme}://127.0.0.1:5555")


def test_a_project_without_a_remit_table_is_passed_over(project: Path) -> None:
    (project.parent / "pyproject.toml").write_text('[tool.remit]\nurl = "memory://above"')
    for without in ('[tool.other]\nurl = "memory://other"', "tool = 5", ""):
        (project / "pyproject.toml").write_text(without)
        assert resolve() == Location("memory://above")


def test_a_working_directory_that_is_gone_has_no_file(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = project / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert resolve("127.0.0.1:5555").port == 5555


def test_of_two_folders_above_the_nearer_one_counts(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project.parent / "remit.toml").write_text('url = "memory://far"')
    (project / "pyproject.toml").write_text('[tool.remit]\nurl = "memory://near"')
    below = project / "a" / "b"
    below.mkdir(parents=True)
    monkeypatch.chdir(below)
    assert resolve() == Location("memory://near")


def test_an_empty_variable_counts_as_none(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REMIT_URL", "")
    (project / "remit.toml").write_text('url = "memory://file"')
    assert resolve() == Location("memory://file")
