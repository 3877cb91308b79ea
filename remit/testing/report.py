"""Reports of the conformance suite, and the table of capabilities of the installed transports."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict, fields
from typing import Any, Final

from remit.errors import RemitError
from remit.location import Location
from remit.plugins import find_transport, installed_transports
from remit.testing import CHECKS
from remit.testing.harness import UrlHarness
from remit.testing.runner import Outcome, Verdict, try_one
from remit.transport import Capabilities

UNITS: Final = ((1 << 20, "MiB"), (1 << 10, "KiB"))
WIDTH: Final = max(len(verdict.value) for verdict in Verdict)


def run_checks(location: Location, *, deadline: float) -> Iterator[Outcome]:
    """Run all checks on the transport of a location, each at a fresh location and for ``deadline`` seconds.

    Raises LocationError, PluginError, and TransportError if no server can be bound at all.
    """
    harness = UrlHarness(location, deadline=deadline)
    harness.transport.bind(harness.location()).close(0.0)
    for check in CHECKS:
        yield try_one(harness, check)


def outcome_lines(outcome: Outcome) -> str:
    """Return one outcome as a line of text, and a second line with the reason unless it passed."""
    check = outcome.check
    line = f"{outcome.verdict.value.ljust(WIDTH)}  {check.line:2}  {check.sentence}"
    return f"{line}\n{' ' * (WIDTH + 6)}{check.name}: {outcome.reason}" if outcome.reason else line


def summary(outcomes: Sequence[Outcome]) -> str:
    """Return the number of checks for each verdict."""
    count = Counter(outcome.verdict for outcome in outcomes)
    return ", ".join(f"{count[verdict]} {verdict.value}" for verdict in Verdict)


def json_report(location: Location, outcomes: Sequence[Outcome]) -> str:
    """Return all outcomes as JSON. The location is shown without its password."""
    report: dict[str, Any] = {
        "location": str(location),
        "capabilities": asdict(find_transport(location.scheme).capabilities),
        "checks": [
            {
                "line": outcome.check.line,
                "name": outcome.check.name,
                "sentence": outcome.check.sentence,
                "capability": outcome.check.capability or None,
                "verdict": outcome.verdict.value,
                "reason": outcome.reason or None,
            }
            for outcome in outcomes
        ],
    }
    return json.dumps(report, indent=2)


def capability_table() -> str:
    """Return the declared capabilities of the installed transports as a Markdown table, one row for each scheme."""
    names = [field.name for field in fields(Capabilities)]
    rows = [["scheme", *names], ["---"] * (len(names) + 1)]
    for scheme in sorted({claim.scheme for claim in installed_transports() if not claim.error}):
        try:
            capabilities = find_transport(scheme).capabilities
        except RemitError:
            continue  # `remit transports` shows its error.
        rows.append([f"`{scheme}`", *(_cell(getattr(capabilities, name)) for name in names)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def _cell(value: bool | int | None) -> str:
    if value is None:
        return "no bound"
    if isinstance(value, bool):
        return "yes" if value else "-"
    for unit, name in UNITS:
        if value % unit == 0:
            return f"{value // unit} {name}"
    return f"{value} B"
