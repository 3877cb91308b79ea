"""`doorman top`: show the tasks of running managers until `q` is pressed."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import signal
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Final

from doorman.cli import ps
from doorman.control.client import Remote, find, look_at_all
from doorman.control.server import ManagerView
from doorman.errors import BadCommandLine, ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType

QUIT_KEYS: Final = b"qQ\x03\x04"
NUMBERS: Final = frozenset({"PID", "CPU%", "RSS", "AGE", "RESTARTS"})
COLOURS: Final = {"running": "green", "waiting": "dim", "failed": "red", "stopping": "yellow"}


def main(arguments: argparse.Namespace) -> int:
    """Show the tasks until `q` or Ctrl-C; print one table with ``--once`` or without a terminal."""
    if arguments.once or not sys.stdout.isatty():
        arguments.json = False
        return ps.main(arguments)
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise BadCommandLine(
            "the live display needs rich: pip install 'remit[cli]'; without it: doorman top --once"
        ) from None
    managers = _Managers(arguments)
    if signal.getsignal(signal.SIGINT) is signal.SIG_DFL:
        signal.signal(signal.SIGINT, signal.default_int_handler)  # The terminal has to be restored.
    with (
        contextlib.closing(managers),
        _single_keys() as keys,
        contextlib.suppress(KeyboardInterrupt),
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(_render(*managers.fetch_views()), refresh=True)
            if _quit_pressed(keys, arguments.interval):
                break
    return 0


class _Managers:
    """Connections to managers. They stay open between two refreshes."""

    def __init__(self, arguments: argparse.Namespace) -> None:
        self._arguments = arguments
        self._open: dict[str, Remote] = {}

    def fetch_views(self) -> tuple[list[ManagerView], list[ControlError]]:
        """Find the managers that run now, and return their views and the errors."""
        try:
            found = find(self._arguments.manager, self._arguments.location, timeout=self._arguments.timeout)
        except ControlError as error:
            return [], [error]
        # Keep known connections: a new one each time would leave a session at the manager for a minute.
        now = {remote.id: remote for remote in found}
        for known in now.keys() & self._open.keys():
            now[known].close()
            now[known] = self._open.pop(known)
        self.close()
        self._open = now
        return look_at_all(list(now.values()))

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1].close()


def _render(views: Sequence[ManagerView], errors: Sequence[ControlError]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ps.TASK_HEAD:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for view in views:
        for row in ps.task_rows(view):
            table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    running, waiting = sum(view.running for view in views), sum(view.waiting for view in views)
    head = f"{len(views)} managers, {running} running, {waiting} waiting; q quits"
    progress = [f"{view.name}: {view.progress}" for view in views if view.progress]
    return Group(Text(head, style="bold"), *map(Text, progress), table, *(Text(str(error), "red") for error in errors))


@contextlib.contextmanager
def _single_keys() -> Iterator[int | None]:
    """Read standard input key by key without echo; yield its descriptor, or None without a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor)
    # cbreak and not raw: Ctrl-C must still raise KeyboardInterrupt.
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quit_pressed(keys: int | None, timeout: float) -> bool:
    """Wait up to ``timeout`` seconds for a key; return whether it ends the display."""
    ready, _, _ = select.select([] if keys is None else [keys], [], [], timeout)
    if keys is None or not ready:
        return False
    pressed = os.read(keys, 64)
    return not pressed or any(key in QUIT_KEYS for key in pressed)
