"""Opening: where a manager's processes are to speak to it, and what starts them, before any of them is there."""

from __future__ import annotations

import contextlib
from collections.abc import Sequence

from doorman.journal.recorder import Recorder
from doorman.launcher import Launcher
from doorman.launcher.zygote import ZygoteLauncher
from remit import Location, Server
from remit.config import resolve
from remit.plugins import find_transport

__all__ = ["opened"]


def opened(
    location: str | Location | Server | None,
    launcher: Launcher | None,
    preload: Sequence[str],
    recorder: Recorder,
) -> tuple[Launcher, Server]:
    """Return what starts a manager's processes, and the server that they speak to; if it raises, nothing is left open.

    Raises ValueError, LocationError, PluginError.
    """
    with contextlib.ExitStack() as undone:
        undone.callback(recorder.close)
        where = _place(location, recorder)
        # The zygote first: it must be exec'd before a transport starts threads here.
        launcher = launcher or _zygote(where, preload)
        undone.callback(launcher.close, 0.0)
        server = location if isinstance(location, Server) else Server(where)
        undone.pop_all()
    return launcher, server


def _place(location: str | Location | Server | None, recorder: Recorder) -> Location:
    if isinstance(location, Server):
        where = location.location
    else:
        where = recorder.private_place() if location is None else resolve(location)
    if not find_transport(where.scheme).capabilities.crosses_processes:
        raise ValueError(f"{where} does not reach other processes; use unix:, or leave the location out")
    return where


def _zygote(where: Location, preload: Sequence[str]) -> ZygoteLauncher:
    zygote = ZygoteLauncher(entry=f"doorman.worker:prepare:{where.scheme}", preload=preload)
    with contextlib.suppress(OSError):
        zygote.start()  # Early, so that it is warm when the first task comes; if it cannot be, a launch will say so.
    return zygote
