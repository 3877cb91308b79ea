"""Violation: what a check says when a transport breaks the contract: what was wanted, and what was seen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

__all__ = ["NotApplicable", "Violation", "expect", "expect_same"]

SHOWN: Final = 40
"""Bytes of a frame that an error shows."""


class Violation(AssertionError):
    """Raised by a check when a transport breaks the contract; its text says what was seen."""


class NotApplicable(Exception):
    """Raised by a check that cannot be tried here; its text says why."""


def expect(fact: object, otherwise: str) -> None:
    """Raise a Violation that says what was seen, unless something is so."""
    if not fact:
        raise Violation(otherwise)


def expect_same(got: Sequence[bytes], sent: Sequence[bytes], *, lossy: bool = False) -> None:
    """Raise a Violation unless the frames that arrived are those that were sent, or some of them if it may lose."""
    if list(got) == list(sent):
        return
    rest = iter(sent)
    if lossy and all(any(frame == each for each in rest) for frame in got):
        return
    first = next((number for number, pair in enumerate(zip(got, sent, strict=False)) if pair[0] != pair[1]), None)
    if first is None:
        first = min(len(got), len(sent))
    seen = _shown(got[first]) if first < len(got) else "nothing more"
    wanted = _shown(sent[first]) if first < len(sent) else "nothing more"
    what = (
        "lost" if len(got) < len(sent) else "doubled or made up" if len(got) > len(sent) else "altered or out of order"
    )
    raise Violation(
        f"{what}: {len(sent)} frames sent, {len(got)} arrived; number {first} is {seen} instead of {wanted}"
    )


def _shown(data: bytes) -> str:
    return repr(data) if len(data) <= SHOWN else f"{data[:SHOWN]!r}... ({len(data)} bytes)"
