"""Plugins: find the transport that claims a scheme."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

import pluggy

from remit import hookspecs
from remit.errors import TransportBroken, TransportNotInstalled

if TYPE_CHECKING:
    from remit.transport import Transport

__all__ = ["find_transport"]

_found: dict[str, Transport] = {}
_lock = threading.Lock()


def find_transport(scheme: str) -> Transport:
    """Return the transport of a scheme, loading its plugin and no other."""
    with _lock:
        if scheme not in _found:
            manager = pluggy.PluginManager(hookspecs.GROUP)
            manager.add_hookspecs(hookspecs)
            try:
                count = manager.load_setuptools_entrypoints(hookspecs.GROUP, name=scheme)
            except Exception as error:
                raise TransportBroken(f"the plugin for {scheme!r} cannot be loaded: {error}") from error
            if not count:
                raise TransportNotInstalled(f"no transport for {scheme!r} is installed")
            _found[scheme] = manager.hook.remit_transport(scheme=scheme)
        return _found[scheme]
