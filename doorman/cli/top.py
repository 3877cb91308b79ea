"""Top: `doorman top`: the tasks of running managers, looked at again and again until `q`."""

from __future__ import annotations

import argparse
import contextlib
import os
import select
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Final

from doorman.cli import ps
from doorman.cli.ps import TASK_HEAD, task_rows
from doorman.control.client import Remote, find
from doorman.control.views import ManagerView
from doorman.errors import BadCommandLine, ControlError

if TYPE_CHECKING:
    from rich.console import RenderableType

__all__ = ["main"]

QUIT: Final = b"qQ\x03\x04"
NUMBERS: Final = frozenset({"PID", "CPU%", "RSS", "AGE", "RESTARTS"})
COLOURS: Final = {"running": "green", "waiting": "dim", "failed": "red", "stopping": "yellow"}


def main(given: argparse.Namespace) -> int:
    """Show the tasks until `q` or Ctrl-C; with ``--once``, or where no terminal is, once."""
    if given.once or not sys.stdout.isatty():
        given.json = False
        return ps.main(given)
    try:
        from rich.console import Console
        from rich.live import Live
    except ImportError:
        raise BadCommandLine(
            "a live picture needs rich: pip install 'remit[cli]'; without it: doorman top --once"
        ) from None
    managers = _Managers(given)
    with (
        contextlib.closing(managers),
        _keys() as keys,
        contextlib.suppress(KeyboardInterrupt),
        Live(console=Console(), screen=True, auto_refresh=False) as live,
    ):
        while True:
            live.update(_picture(*managers.look()), refresh=True)
            if _quits(keys, given.interval):
                break
    return 0


class _Managers:
    """The managers that are looked at, whose connections are kept from one look to the next."""

    def __init__(self, given: argparse.Namespace) -> None:
        self._given = given
        self._open: dict[str, Remote] = {}

    def look(self) -> tuple[list[ManagerView], list[ControlError]]:
        """Ask those that are there now."""
        try:
            found = find(self._given.manager, self._given.location, timeout=self._given.timeout)
        except ControlError as error:
            return [], [error]
        now = {}
        for remote in found:
            known = self._open.pop(remote.id, None)
            now[remote.id] = known or remote
            if known is not None:
                remote.close()
        self.close()
        self._open = now
        return ps.looked(list(now.values()))

    def close(self) -> None:
        """Let go of all of them."""
        while self._open:
            self._open.popitem()[1].close()


def _picture(views: Sequence[ManagerView], complaints: Sequence[ControlError]) -> RenderableType:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in TASK_HEAD:
        table.add_column(name, justify="right" if name in NUMBERS else "left", no_wrap=True)
    for view in views:
        for row in task_rows(view):
            table.add_row(*(Text(cell, style=COLOURS.get(cell, "")) for cell in row))
    running, waiting = sum(view.running for view in views), sum(view.waiting for view in views)
    head = f"{len(views)} managers, {running} running, {waiting} waiting; q ends"
    told = [f"{view.name}: {view.progress}" for view in views if view.progress]
    return Group(Text(head, style="bold"), *map(Text, told), table, *(Text(str(each), "red") for each in complaints))


@contextlib.contextmanager
def _keys() -> Iterator[int | None]:
    """Give a descriptor on which single keys can be read, without their being printed; None without a terminal."""
    if not sys.stdin.isatty():
        yield None
        return
    import termios
    import tty

    descriptor = sys.stdin.fileno()
    before: list[Any] = termios.tcgetattr(descriptor)
    tty.setcbreak(descriptor)
    try:
        yield descriptor
    finally:
        termios.tcsetattr(descriptor, termios.TCSADRAIN, before)


def _quits(keys: int | None, seconds: float) -> bool:
    """Wait for a key; tell whether it ends the watching."""
    ready, _, _ = select.select([] if keys is None else [keys], [], [], seconds)
    if keys is None or not ready:
        return False
    pressed = os.read(keys, 64)
    return not pressed or any(key in QUIT for key in pressed)
