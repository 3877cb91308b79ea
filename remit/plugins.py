"""Transports by URL scheme: find, list, register and block them, and explain what is missing."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import import_module
from typing import Any, Final

import pluggy

from remit import hookspecs
from remit.errors import BadLocation, SchemeClaimedTwice, TransportBroken, TransportNotInstalled
from remit.options import nearest
from remit.transport import Capabilities, Transport

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
BLOCK_VARIABLE: Final = "REMIT_BLOCK"
"""Environment variable with a comma-separated list of schemes that `find_transport` refuses."""
# No other distribution can replace these, and they are found without a scan of all distributions, which takes 30 ms.
BUILT_IN: Final = {"memory": "remit.transports.memory", "unix": "remit.transports.unix"}
CHAOS: Final = "chaos+"
"""Prefix of the scheme of a fault-injecting transport; the rest is the scheme of the wrapped one."""
_REQUIREMENT: Final = re.compile(r"""\s*([\w.-]+)[^;]*;.*extra\s*==\s*["']([^"']+)["']""")

_found: dict[str, Transport] = {}
_registered: dict[str, Transport] = {}
_blocked: set[str] = set()


@dataclass(frozen=True, slots=True)
class TransportInfo:
    """One distribution's claim to a scheme, as its entry points state it."""

    scheme: str
    distribution: str
    version: str
    module: str
    error: str = ""
    """Why the transport cannot be used; empty if it can. Errors of loading the plugin are not known here."""

    @property
    def claimant(self) -> str:
        """The distribution and its version."""
        return f"{self.distribution} {self.version}".rstrip()


def find_transport(scheme: str) -> Transport:
    """Return the transport for a scheme. Its plugin, and no other, is loaded once per process.

    ``chaos+<scheme>`` is the transport for ``<scheme>`` with the injected faults of `remit.transports.chaos`.
    Raises TransportNotInstalled (none, or blocked), SchemeClaimedTwice, TransportBroken.
    """
    # No lock, here and below: an interrupt would leave it locked. Each change is one operation on a dict or set.
    if blocker := _blocker(scheme):
        raise TransportNotInstalled(f"the transport for {scheme!r} is blocked by {blocker}; choose another scheme")
    if transport := _registered.get(scheme) or _found.get(scheme):
        return transport
    if scheme.startswith(CHAOS):
        from remit.transports.chaos import ChaosTransport  # Imported here, because few processes need it.

        # Not cached: register_transport() may replace the wrapped transport.
        wrapped = scheme.removeprefix(CHAOS)
        return ChaosTransport(wrapped, find_transport(wrapped))
    # Two threads may load it, but use the same transport: each has its own state.
    return _found.setdefault(scheme, _load(scheme))


def register_transport(scheme: str, transport: Transport) -> None:
    """Use a transport for a scheme within this process, in preference to an installed one; for tests and embedding.

    Raises BadLocation if the scheme is malformed, TransportBroken if the object is not a transport, and
    SchemeClaimedTwice if another transport is registered for the scheme.
    """
    if not re.fullmatch(r"[a-z][a-z0-9+.-]*", scheme):
        raise BadLocation(f"{scheme!r} is not a URL scheme: use lower-case letters, digits, '+', '-' and '.'")
    if fault := _missing_parts(transport):
        raise TransportBroken(f"{transport!r} cannot be registered for {scheme!r}: {fault}")
    if _registered.setdefault(scheme, transport) is not transport:
        raise SchemeClaimedTwice(f"{scheme!r} is registered already; call unregister_transport({scheme!r}) first")


def unregister_transport(scheme: str) -> None:
    """Undo `register_transport`. A second call has no effect."""
    _registered.pop(scheme, None)


def block_transport(scheme: str) -> None:
    """Refuse a scheme in this process. The variable REMIT_BLOCK also applies to child processes."""
    _blocked.add(scheme)


def unblock_transport(scheme: str) -> None:
    """Undo `block_transport`. A second call has no effect."""
    _blocked.discard(scheme)


def installed_transports() -> list[TransportInfo]:
    """Return all claims on all schemes, sorted, without importing any plugin."""
    claims = list(_claims())
    claims += [TransportInfo(name, "", "", type(each).__module__) for name, each in list(_registered.items())]
    ours = {claim.scheme for claim in claims if claim.distribution == DISTRIBUTION}
    claims += [TransportInfo(name, DISTRIBUTION, "", BUILT_IN[name]) for name in BUILT_IN if name not in ours]
    return sorted((_with_status(each, claims) for each in claims), key=lambda each: (each.scheme, each.distribution))


def explain_missing(scheme: str, installed: Sequence[str]) -> str:
    """Return the text of an error: the installed transports, and what to install or write instead."""
    names = ", ".join(installed) or "none"
    return f"no transport for {scheme!r} is installed (installed: {names}); {_advice(scheme, installed)}"


def _load(scheme: str) -> Transport:
    """Load the plugin that claims a scheme. Raises PluginError unless exactly one does."""
    # One manager per scheme, so that a plugin's failure affects no other and one module may provide several schemes.
    manager = pluggy.PluginManager(hookspecs.GROUP)
    manager.add_hookspecs(hookspecs)
    claimant = DISTRIBUTION if scheme in BUILT_IN else _only_claimant(scheme)
    failure = "cannot be loaded"
    try:
        if scheme in BUILT_IN:
            manager.register(import_module(BUILT_IN[scheme]), name=scheme)
        else:
            manager.load_setuptools_entrypoints(hookspecs.GROUP, name=scheme)
            manager.check_pending()
        failure = "failed when asked for it"
        transport: Transport | None = manager.hook.remit_transport(scheme=scheme)
    except (Exception, SystemExit) as error:  # A plugin that calls sys.exit() must not end the program.
        shown = f"{type(error).__name__}: {error}".rstrip(": ")
        raise _broken(scheme, claimant, f"{failure}: {shown}") from error
    if transport is None:
        raise _broken(scheme, claimant, "claims it, but its hook remit_transport() returned None")
    if fault := _missing_parts(transport):
        raise _broken(scheme, claimant, f"returned {transport!r}, {fault}")
    return transport


def _only_claimant(scheme: str) -> str:
    claimants = [claim.claimant for claim in _claims() if claim.scheme == scheme]
    if not claimants:
        usable = sorted({claim.scheme for claim in installed_transports() if not claim.error})
        raise TransportNotInstalled(explain_missing(scheme, usable))
    if len(claimants) > 1:
        both = " and ".join(claimants)
        raise SchemeClaimedTwice(f"{scheme!r} is claimed by {both}; uninstall all but one of them")
    return claimants[0]


def _missing_parts(transport: Any) -> str:
    """Return why an object is not a transport; empty if it is one."""
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


def _claims() -> Iterator[TransportInfo]:
    """Yield the entry points of the group."""
    from importlib.metadata import distributions  # 30 ms, and built-in transports do not need it

    seen = set()
    for distribution in distributions():
        entries = [entry for entry in distribution.entry_points if entry.group == hookspecs.GROUP]
        if not entries:
            continue
        name = distribution.metadata["Name"] or "an unnamed distribution"
        # A distribution may be found twice, on two entries of sys.path or as an editable install: the first is used.
        if (key := re.sub(r"[-_.]+", "-", name).lower()) not in seen:
            seen.add(key)
            for entry in entries:
                yield TransportInfo(entry.name, name, distribution.version, entry.value)


def _with_status(claim: TransportInfo, claims: list[TransportInfo]) -> TransportInfo:
    """Return a claim with the reason why its transport is not used, if there is one."""
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


def _blocker(scheme: str) -> str:
    if scheme in _blocked:
        return "block_transport()"
    listed = os.environ.get(BLOCK_VARIABLE, "").split(",")
    return BLOCK_VARIABLE if scheme and scheme in {each.strip() for each in listed} else ""


def _advice(scheme: str, installed: Sequence[str]) -> str:
    # "tcp" alone: the backend in front of the "+" is missing.
    if carriers := [name for name in installed if name.endswith(f"+{scheme}")]:
        return _did_you_mean(carriers)
    backend = scheme.partition("+")[0]
    extras = _missing_extras()
    if extra := _matching_extra(backend, extras):
        return f"try: pip install '{DISTRIBUTION}[{extra}]'"
    if close := _similar_schemes(scheme, backend, installed):
        return _did_you_mean(close)
    if close_extra := nearest(backend, extras):
        return f"did you mean {close_extra!r}? try: pip install '{DISTRIBUTION}[{close_extra}]'"
    return f"install a distribution that provides it: one with the entry point {scheme!r} in the group 'remit'"


def _missing_extras() -> list[str]:
    """Return the extras of this distribution that install one transport, without those that are installed."""
    from importlib import metadata  # 30 ms, needed only for an error message

    try:
        requirements = metadata.requires(DISTRIBUTION) or []
    except metadata.PackageNotFoundError:
        return []  # Not installed, but imported from a source tree.
    missing = []
    for match in filter(None, map(_REQUIREMENT.match, requirements)):
        distribution, extra = match.groups()
        # Not the extra that installs all transports.
        if distribution == f"{DISTRIBUTION}-{extra}":
            try:
                metadata.version(distribution)
            except metadata.PackageNotFoundError:
                missing.append(extra)
    return missing


def _matching_extra(backend: str, extras: Iterable[str]) -> str:
    """Return the extra with this name, or else the only one that abbreviates it or is abbreviated by it."""
    names = sorted(extras)
    if backend in names:
        return backend
    # One or two letters would abbreviate almost any name.
    if len(backend) < 3:
        return ""
    alike = [name for name in names if _is_subsequence(backend, name) or _is_subsequence(name, backend)]
    return alike[0] if len(alike) == 1 else ""


def _is_subsequence(short: str, long: str) -> bool:
    """Return whether a word contains all letters of a shorter one in the same order, from the same first letter."""
    letters = iter(long)
    return short[:1] == long[:1] and all(letter in letters for letter in short)


def _similar_schemes(scheme: str, backend: str, installed: Sequence[str]) -> list[str]:
    """Return the installed schemes of the same backend, or else the one with the most similar name."""
    known = {name.partition("+")[0] for name in installed}
    meant = backend if backend in known else _matching_extra(backend, known)
    same = [name for name in installed if name.partition("+")[0] == meant]
    close = nearest(scheme, same or installed)
    return [close] if close and ("+" in scheme or not same) else same


def _did_you_mean(names: Sequence[str]) -> str:
    return f"did you mean {' or '.join(repr(name) for name in names)}?"
