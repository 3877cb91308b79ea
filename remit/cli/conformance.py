"""Conformance: `remit conformance`: a transport is put to the contract's checks, or the installed ones to a table."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Final

from remit.cli.parser import TABLE_BEGINS
from remit.config import resolve
from remit.testing import report
from remit.testing.harness import DEADLINE_S
from remit.testing.runner import Outcome, Verdict

__all__ = ["main"]

TABLE_ENDS: Final = "<!-- capabilities: end -->"
UNMARKED: Final = 2
"""Exit code when the page has no place for the table."""


def main(given: argparse.Namespace) -> int:
    """Print each outcome; exit code 1 when a check failed."""
    if given.table:
        return _table(report.capability_table(), given.into)
    location = resolve(given.location)
    outcomes: list[Outcome] = []
    for outcome in report.run_checks(location, deadline=given.deadline or DEADLINE_S):
        outcomes.append(outcome)
        if not given.json:
            print(report.outcome_lines(outcome), flush=True)
    print(report.json_report(location, outcomes) if given.json else report.summary(outcomes))
    return int(any(outcome.verdict is Verdict.FAILED for outcome in outcomes))


def _table(table: str, into: str | None) -> int:
    if into is None:
        print(table)
        return 0
    page = Path(into)
    try:
        text = page.read_text()
    except OSError as error:
        print(f"remit: cannot read {into}: {error.strerror}; name a page that exists", file=sys.stderr)
        return UNMARKED
    before, begins, rest = text.partition(TABLE_BEGINS)
    _, ends, after = rest.partition(TABLE_ENDS)
    if not ends:
        print(f"remit: {into} has no {TABLE_BEGINS} followed by {TABLE_ENDS}: write them into it", file=sys.stderr)
        return UNMARKED
    page.write_text(f"{before}{begins}\n\n{table}\n\n{ends}{after}")
    return 0
