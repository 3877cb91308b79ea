"""The table of what each transport can do is what the transports declare."""

from __future__ import annotations

import shutil
from pathlib import Path

from remit.cli import main
from remit.testing.report import capability_table

PAGE = Path(__file__).parents[2] / "docs/backends.md"


def rows(text: str) -> set[str]:
    return {line for line in text.splitlines() if line.startswith("|")}


def test_the_table_on_the_page_is_what_the_installed_transports_declare() -> None:
    shown = PAGE.read_text().partition("<!-- capabilities: begin -->")[2].partition("<!-- capabilities: end -->")[0]
    assert rows(capability_table()) <= rows(shown), "run: remit conformance --table --into docs/backends.md"


def test_the_table_is_written_between_its_marks(tmp_path: Path) -> None:
    page = Path(shutil.copy(PAGE, tmp_path))
    text = page.read_text()
    page.write_text(text.replace("| `unix` | 16 MiB", "| `unix` | 17 MiB"))
    assert main(["conformance", "--table", "--into", str(page)]) == 0
    assert capability_table() in page.read_text()
    assert (
        page.read_text().partition("<!-- capabilities: begin -->")[0]
        == text.partition("<!-- capabilities: begin -->")[0]
    )
    assert (
        page.read_text().partition("<!-- capabilities: end -->")[2] == text.partition("<!-- capabilities: end -->")[2]
    )


def test_a_page_without_the_marks_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("nothing")
    assert main(["conformance", "--table", "--into", str(tmp_path / "page.md")]) == 2
    assert (tmp_path / "page.md").read_text() == "nothing"
