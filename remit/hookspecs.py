"""Hook specification for plugins: the one hook that a transport implements."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from remit.transport import Transport

__all__ = ["GROUP", "hookimpl", "hookspec"]

GROUP = "remit"
"""Entry-point group. The name of an entry point is the URL scheme that it provides."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(firstresult=True)
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport for ``scheme``, or None if this plugin does not provide it.

    Called once per scheme and process, when the first location of that scheme is opened. Import the backend's
    library here and not at the top of the plugin if the import is slow.
    """
