"""Plugins: the step from a location's scheme to the transport that claims it: find, list, block and explain."""

from __future__ import annotations

import difflib
import os
import re
import threading
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import pluggy

from remit import hookspecs
from remit.errors import BadLocation, SchemeClaimedTwice, TransportBroken, TransportNotInstalled
from remit.transport import Capabilities, Transport, register_after_fork

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

__all__ = [
    "TransportInfo",
    "block_transport",
    "explain_missing",
    "find_transport",
    "installed_transports",
    "register_transport",
    "unblock_transport",
    "unregister_transport",
]


DISTRIBUTION: Final = "remit"
MIN_ABBREVIATION: Final = 3
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
    if extra := _matching_extra(backend, extras):
        return f"try: pip install '{DISTRIBUTION}[{extra}]'"
    if close := _similar_schemes(scheme, backend, installed):
        return _did_you_mean(close)
    if close := difflib.get_close_matches(backend, extras, n=1):
        return f"did you mean {close[0]!r}? try: pip install '{DISTRIBUTION}[{close[0]}]'"
    return f"install a distribution that provides it: one with the entry point {scheme!r} in the group 'remit'"


def _extras() -> dict[str, str]:
    """Return each extra that stands for one transport's distribution, with that distribution's name."""
    from importlib import metadata  # 30 ms, which schemes in the box need not pay

    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return {}  # run from its sources: there is no list of extras
    pairs = [match.groups() for each in requirements if (match := _REQUIREMENT.match(each))]
    return {extra: name for name, extra in pairs if name == f"{DISTRIBUTION}-{extra}"}


def _matching_extra(backend: str, extras: Iterable[str]) -> str:
    """Return the extra that a scheme's first part means: the same word, or its letters left out or added to."""
    names = sorted(extras)
    if backend in names:
        return backend
    if len(backend) < MIN_ABBREVIATION:
        return ""
    alike = [name for name in names if _is_subsequence(backend, name) or _is_subsequence(name, backend)]
    return alike[0] if len(alike) == 1 else ""


def _is_subsequence(short: str, long: str) -> bool:
    """Say whether the letters of one word stand in another in that order, from its first letter on."""
    letters = iter(long)
    return short[:1] == long[:1] and all(letter in letters for letter in short)


def _is_installed(distribution: str) -> bool:
    from importlib import metadata  # as above

    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _similar_schemes(scheme: str, backend: str, installed: Sequence[str]) -> list[str]:
    """Return the schemes of the same backend, else the one that is written most alike."""
    known = {name.partition("+")[0] for name in installed}
    meant = backend if backend in known else _matching_extra(backend, known)
    same = [name for name in installed if name.partition("+")[0] == meant]
    alike = difflib.get_close_matches(scheme, same or installed, n=1)
    return alike if alike and "+" in scheme else same or alike


def _did_you_mean(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(repr(name) for name in names)}?"


BLOCK_VARIABLE: Final = "REMIT_BLOCK"
"""The environment's list of schemes, separated by commas, that `find_transport` refuses."""
BUILT_IN: Final = {"memory": "remit.transports.memory", "unix": "remit.transports.unix"}
"""What Remit itself claims; no other claimant displaces these, and finding them costs no scan."""

CHAOS: Final = "chaos+"
"""What the scheme of a spoiled transport begins with; the rest is the scheme of the one to be spoiled."""
_SCHEME: Final = re.compile(r"[a-z][a-z0-9+.-]*")

_found: dict[str, Transport] = {}
_registered: dict[str, Transport] = {}
_blocked: set[str] = set()
_lock = threading.RLock()
"""Reentrant: a plugin may wrap another transport, and look for it while it is itself being loaded."""


@dataclass(frozen=True, slots=True)
class TransportInfo:
    """One claim on a scheme, as the installed distributions state it."""

    scheme: str
    distribution: str
    version: str
    module: str
    error: str = ""
    """Why it is not used; empty when it is. What only loading can show is not known here."""

    @property
    def claimant(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}".rstrip()


def find_transport(scheme: str) -> Transport:
    """Return the transport that claims a scheme, loading its plugin and no other, once per process.

    ``chaos+<scheme>`` is the transport of ``<scheme>``, spoiled as `remit.transports.chaos` says.
    Raises TransportNotInstalled (none, or blocked), SchemeClaimedTwice, TransportBroken.
    """
    with _lock:
        _refuse_blocked(scheme)
        transport = _registered.get(scheme) or _found.get(scheme)
        if transport is None and scheme.startswith(CHAOS):
            from remit.transports.chaos import ChaosTransport  # here, because hardly a process needs it

            # Made anew each time: which transport is the wrapped one may change with register_transport().
            wrapped = scheme.removeprefix(CHAOS)
            return ChaosTransport(wrapped, find_transport(wrapped))
        if transport is None:
            transport = _found[scheme] = _load(scheme)
        return transport


def register_transport(scheme: str, transport: Transport) -> None:
    """Claim a scheme within this process, for tests and embedded use; it goes before what is installed.

    Raises BadLocation when the scheme is none, TransportBroken when that is no transport, SchemeClaimedTwice
    when the scheme is registered already.
    """
    if not _SCHEME.fullmatch(scheme):
        raise BadLocation(f"{scheme!r} is not a URL scheme: use lower-case letters, digits, '+', '-' and '.'")
    if fault := _missing_parts(transport):
        raise TransportBroken(f"{transport!r} cannot be registered for {scheme!r}: {fault}")
    with _lock:
        if _registered.get(scheme, transport) is not transport:
            raise SchemeClaimedTwice(f"{scheme!r} is registered already; call unregister_transport({scheme!r}) first")
        _registered[scheme] = transport


def unregister_transport(scheme: str) -> None:
    """Take back `register_transport`. Twice is fine."""
    with _lock:
        _registered.pop(scheme, None)


def block_transport(scheme: str) -> None:
    """Refuse a scheme in this process from now on; REMIT_BLOCK does the same for the children too."""
    with _lock:
        _blocked.add(scheme)


def unblock_transport(scheme: str) -> None:
    """Take back `block_transport`. Twice is fine."""
    with _lock:
        _blocked.discard(scheme)


def installed_transports() -> list[TransportInfo]:
    """Return all claims on all schemes, sorted, without importing any plugin."""
    claims = [_info(name, version, entry) for name, version, entry in _entry_points()]
    with _lock:
        claims += [TransportInfo(name, "", "", type(each).__module__) for name, each in _registered.items()]
    ours = {claim.scheme for claim in claims if claim.distribution == DISTRIBUTION}
    claims += [TransportInfo(name, DISTRIBUTION, "", BUILT_IN[name]) for name in BUILT_IN if name not in ours]
    return sorted((_with_status(each, claims) for each in claims), key=lambda each: (each.scheme, each.distribution))


# -- loading ---------------------------------------------------------------------------------------------------


def _load(scheme: str) -> Transport:
    """Three cases: 1. ours; 2. one distribution claims it; 3. none or several do."""
    if scheme in BUILT_IN:
        manager = _manager()
        manager.register(import_module(BUILT_IN[scheme]), name=scheme)
        return _call_hook(manager, scheme, DISTRIBUTION)
    claims = [_info(name, version, entry) for name, version, entry in _entry_points() if entry.name == scheme]
    if not claims:
        raise TransportNotInstalled(explain_missing(scheme, _usable()))
    if len(claims) > 1:
        both = " and ".join(claim.claimant for claim in claims)
        raise SchemeClaimedTwice(f"{scheme!r} is claimed by {both}; uninstall all but one of them")
    manager = _manager()
    try:
        manager.load_setuptools_entrypoints(hookspecs.GROUP, name=scheme)
        manager.check_pending()
    except (Exception, SystemExit) as error:  # a plugin must not end the program that only looked for it
        raise _broken(scheme, claims[0].claimant, f"cannot be loaded: {_describe(error)}") from error
    return _call_hook(manager, scheme, claims[0].claimant)


def _manager() -> pluggy.PluginManager:
    # A fresh one for each scheme: one plugin's failure stays its own, and one module may claim several schemes.
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    return manager


def _call_hook(manager: pluggy.PluginManager, scheme: str, claimant: str) -> Transport:
    try:
        transport: Transport | None = manager.hook.remit_transport(scheme=scheme)
    except (Exception, SystemExit) as error:
        raise _broken(scheme, claimant, f"failed when asked for it: {_describe(error)}") from error
    if transport is None:
        raise _broken(scheme, claimant, "claims it, but its hook remit_transport() returned None")
    if fault := _missing_parts(transport):
        raise _broken(scheme, claimant, f"returned {transport!r}, {fault}")
    return transport


def _missing_parts(transport: Any) -> str:
    """Say what keeps an object from being a transport; nothing if it is one."""
    if isinstance(transport, type):
        return "which is a class: return an instance of it"
    wrong = [name for name in ("bind", "connect") if not callable(getattr(transport, name, None))]
    if not isinstance(getattr(transport, "capabilities", None), Capabilities):
        wrong.append("capabilities")
    if not isinstance(getattr(transport, "options", None), Mapping):
        wrong.append("options")
    return f"which has no usable {', '.join(wrong)}: see remit.transport.Transport" if wrong else ""


def _broken(scheme: str, claimant: str, what: str) -> TransportBroken:
    return TransportBroken(f"the transport for {scheme!r}, from {claimant}, {what}; repair or uninstall that package")


def _describe(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}".rstrip(": ")


# -- what is installed -----------------------------------------------------------------------------------------


def _entry_points() -> Iterator[tuple[str, str, EntryPoint]]:
    """Yield name and version of each distribution with each of its entry points in our group."""
    from importlib.metadata import distributions  # 30 ms, which the schemes in the box need not pay

    seen = set()
    for distribution in distributions():
        entries = [entry for entry in distribution.entry_points if entry.group == hookspecs.GROUP]
        if not entries:
            continue
        name = distribution.metadata["Name"] or "an unnamed distribution"
        # Found again further down sys.path, or once more beside an editable install: the first is the one in use.
        if (key := re.sub(r"[-_.]+", "-", name).lower()) not in seen:
            seen.add(key)
            yield from ((name, distribution.version, entry) for entry in entries)


def _info(name: str, version: str, entry: EntryPoint) -> TransportInfo:
    return TransportInfo(entry.name, name, version, entry.value)


def _with_status(claim: TransportInfo, claims: list[TransportInfo]) -> TransportInfo:
    """Return a claim with the reason why it is not used, if there is one."""
    rivals = [other for other in claims if other.scheme == claim.scheme and other != claim]
    if blocker := _blocker(claim.scheme):
        return replace(claim, error=f"blocked by {blocker}")
    if not rivals or not claim.distribution or (claim.scheme in BUILT_IN and claim.distribution == DISTRIBUTION):
        return claim
    if any(not rival.distribution for rival in rivals):
        return replace(claim, error="replaced by register_transport() in this process")
    if claim.scheme in BUILT_IN:
        return replace(claim, error=f"not used: {DISTRIBUTION} itself claims {claim.scheme!r}")
    return replace(claim, error=f"claimed twice: also by {' and '.join(rival.claimant for rival in rivals)}")


def _usable() -> list[str]:
    return sorted({claim.scheme for claim in installed_transports() if not claim.error})


def _blocker(scheme: str) -> str:
    if scheme in _blocked:
        return "block_transport()"
    listed = os.environ.get(BLOCK_VARIABLE, "").split(",")
    return BLOCK_VARIABLE if scheme and scheme in {each.strip() for each in listed} else ""


def _refuse_blocked(scheme: str) -> None:
    if blocker := _blocker(scheme):
        raise TransportNotInstalled(f"the transport for {scheme!r} is blocked by {blocker}; choose another scheme")


def _after_fork_in_child() -> None:
    global _lock
    _lock = threading.RLock()


register_after_fork(_after_fork_in_child)
