"""The suite proves something: it rejects every transport that breaks the contract, and none that keeps it."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from mutants import MUTANTS, Mutant, MutantHarness, MutantTransport, cut, release
from mutants.making import Sound, released

from remit.testing import CHECKS, Check, Disruption, Verdict, try_one
from remit.transport import Peer, Sent

BY_NAME = {check.name: check for check in CHECKS}


class Forgets(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        self.sent += 1
        return Sent.ACCEPTED if self.sent % 7 == 0 and peer in self._routes else super().send(peer, frame)


KEEPING = {
    "plain": (MutantTransport(), "memory://{}"),
    "small": (MutantTransport(), "memory://{}?capacity=1&max_frame=100"),
    "lossy": (MutantTransport(Forgets, lossy=True), "memory://{}"),
}


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
    # On a machine that is busy the check's own deadline may come first: that is a rejection as well.
    assert re.search(f"{mutant.says}|still blocked after", outcome.reason), outcome.reason


@pytest.mark.parametrize("kind", KEEPING)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.name)
def test_what_keeps_the_contract_passes(check: Check, kind: str) -> None:
    transport, place = KEEPING[kind]
    harness = MutantHarness(transport, place=place, breaks=dict.fromkeys(Disruption, cut))
    harness.patience = 0.5
    outcome = try_one(harness, check)
    assert outcome.verdict is not Verdict.FAILED, outcome


def test_each_check_rejects_a_mutant() -> None:
    assert sorted(BY_NAME.keys() - {mutant.caught_by for mutant in MUTANTS}) == []
