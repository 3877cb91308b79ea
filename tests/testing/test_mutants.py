"""The suite proves something: it rejects every transport that breaks the contract, and none that keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from mutants import MUTANTS, Mutant, MutantHarness, MutantTransport, cut, release
from mutants.making import released

from remit.testing import CHECKS, Check, Disruption, Verdict, try_one

BY_NAME = {check.name: check for check in CHECKS}


@pytest.fixture(scope="module", autouse=True)
def _released() -> Iterator[None]:
    """What hangs lets go at the end, and may hang again for whoever comes next."""
    released.clear()
    yield
    release()


@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda mutant: mutant.name)
def test_a_mutant_is_rejected(mutant: Mutant) -> None:
    outcome = try_one(mutant.harness, BY_NAME[mutant.caught_by])
    assert outcome.verdict is Verdict.FAILED, outcome
    assert re.search(mutant.says, outcome.reason), outcome.reason


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_what_they_are_made_from_passes(check: Check) -> None:
    harness = MutantHarness(MutantTransport(), breaks=dict.fromkeys(Disruption, cut))
    harness.patience = 1.0
    outcome = try_one(harness, check)
    assert outcome.verdict is not Verdict.FAILED, outcome


def test_each_check_rejects_a_mutant() -> None:
    assert sorted(BY_NAME.keys() - {mutant.caught_by for mutant in MUTANTS}) == []
