"""The docs name files that exist, and each public name."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])


def test_every_file_that_how_it_works_names_exists() -> None:
    text = (ROOT / "docs/how-it-works.md").read_text()
    named = set(re.findall(r"`((?:remit|doorman|plugins|tests)/[\w./-]*)`", text))
    assert len(named) > 30
    assert {"remit/_protocol/", "remit/testing/", "doorman/_scheduler/"} <= named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_to_pages(page: Path) -> None:
    links = re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())
    assert [link for link in links if not (page.parent / link).exists()] == []


def test_the_core_knows_no_backend() -> None:
    names = re.compile(r"redis|zeromq|\bzmq|nng", re.IGNORECASE)
    allowed = {"remit/config.py"}
    guilty = [
        f"{path.relative_to(ROOT)}:{number}"
        for package in ("remit", "doorman")
        for path in sorted((ROOT / package).rglob("*.py"))
        if path.relative_to(ROOT).as_posix() not in allowed
        for number, line in enumerate(path.read_text().splitlines(), 1)
        if names.search(line)
    ]
    assert guilty == []


def test_each_entry_of_the_catalogues_is_forced_by_a_test_of_its_name() -> None:
    listed = {
        f"I{int(number):02}" for number in re.findall(r"^\| I(\d+) \|", (ROOT / "docs/identity.md").read_text(), re.M)
    }
    of_the_ancestor = {f"B{number:02}" for number in range(1, 21)}
    tests = "\n".join(path.read_text() for path in (ROOT / "tests/doorman").rglob("test_*.py"))
    assert listed == {f"I{number:02}" for number in range(1, 23)}
    assert listed | of_the_ancestor == set(re.findall(r"def test_([IB]\d\d)_", tests))
