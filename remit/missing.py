"""Missing: what to tell someone whose location's scheme no installed transport claims."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Sequence
from importlib import metadata
from typing import Final

__all__ = ["explain_missing"]

OURSELVES: Final = "remit"
SHORTEST: Final = 3
"""Letters below which a scheme is too short to be taken for an extra's abbreviation."""
_REQUIREMENT: Final = re.compile(r"""\s*([\w.-]+)[^;]*;.*extra\s*==\s*["']([^"']+)["']""")


def explain_missing(scheme: str, installed: Sequence[str]) -> str:
    """Say which transports there are, and what to install or to write instead."""
    there = ", ".join(installed) or "none"
    return f"no transport for {scheme!r} is installed (installed: {there}); {_advice(scheme, installed)}"


def _advice(scheme: str, installed: Sequence[str]) -> str:
    """Four cases: 1. a carrier without its backend; 2. an extra of ours; 3. a typing error; 4. a stranger."""
    if carried := [name for name in installed if name.endswith(f"+{scheme}")]:
        return _did_you_mean(carried)
    backend = scheme.partition("+")[0]
    extras = [extra for extra, distribution in _extras().items() if not _is_installed(distribution)]
    if extra := _abbreviated(backend, extras):
        return f"try: pip install '{OURSELVES}[{extra}]'"
    if close := _close(scheme, backend, installed):
        return _did_you_mean(close)
    if close := difflib.get_close_matches(backend, extras, n=1):
        return f"did you mean {close[0]!r}? try: pip install '{OURSELVES}[{close[0]}]'"
    return f"install a distribution that provides it: one with the entry point {scheme!r} in the group 'remit'"


def _extras() -> dict[str, str]:
    """Return each extra that stands for one transport's distribution, with that distribution's name."""
    try:
        requirements = metadata.requires(OURSELVES) or []
    except metadata.PackageNotFoundError:
        return {}  # run from its sources: there is no list of extras
    pairs = [match.groups() for each in requirements if (match := _REQUIREMENT.match(each))]
    return {extra: name for name, extra in pairs if name == f"{OURSELVES}-{extra}"}


def _abbreviated(backend: str, extras: Iterable[str]) -> str:
    """Return the extra that a scheme's first part means: the same word, or its letters left out or added to."""
    names = sorted(extras)
    if backend in names:
        return backend
    if len(backend) < SHORTEST:
        return ""
    alike = [name for name in names if _within(backend, name) or _within(name, backend)]
    return alike[0] if len(alike) == 1 else ""


def _within(short: str, long: str) -> bool:
    """Say whether the letters of one word stand in another in that order, from its first letter on."""
    letters = iter(long)
    return short[:1] == long[:1] and all(letter in letters for letter in short)


def _is_installed(distribution: str) -> bool:
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _close(scheme: str, backend: str, installed: Sequence[str]) -> list[str]:
    """Return the schemes of the same backend, else the one that is written most alike."""
    known = {name.partition("+")[0] for name in installed}
    meant = backend if backend in known else _abbreviated(backend, known)
    same = [name for name in installed if name.partition("+")[0] == meant]
    alike = difflib.get_close_matches(scheme, same or installed, n=1)
    return alike if alike and "+" in scheme else same or alike


def _did_you_mean(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(repr(name) for name in names)}?"
