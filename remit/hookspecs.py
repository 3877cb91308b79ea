"""Hook specifications: everything that a plugin can add to Remit, on one screen."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pluggy

if TYPE_CHECKING:
    from remit.transport import Transport

__all__ = ["GROUP", "hookimpl", "hookspec"]

GROUP = "remit"
"""The entry-point group; an entry point's name is the URL scheme that it claims."""

hookspec = pluggy.HookspecMarker(GROUP)
hookimpl = pluggy.HookimplMarker(GROUP)


@hookspec(firstresult=True)
def remit_transport(scheme: str) -> Transport | None:
    """Return the transport that opens links for ``scheme``, or None if it is not this plugin's.

    Called once per scheme and process, when the first location of that scheme is opened. Import the
    backend's library here rather than at the top of the plugin if it is dear to import.
    """
