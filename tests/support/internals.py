"""The one place where tests reach for private attributes of the product, each with the reason."""

from __future__ import annotations

import socket
from concurrent.futures import Future
from typing import Any

from doorman import ProcessManager, Task
from doorman._scheduler.attempt import Attempt
from doorman._scheduler.event_loop import LoopDriver
from doorman.launcher.zygote import ZygoteLauncher
from remit import Client, Server
from remit._io.client_io import ClientIO
from remit._io.server_io import ServerIO
from remit._protocol.session import Session


def client_io(client: Client) -> ClientIO:
    """Return the I/O of a client that was used already."""
    io = client._io  # to break its link, or to count its work
    assert io is not None
    return io


def server_io(server: Server) -> ServerIO:
    """Return the I/O of an open server."""
    io = server._io  # to break its link, or to count its work
    assert io is not None
    return io


def sessions_of(server: Server) -> list[Session]:
    """Return the sessions of the clients of a server."""
    return list(server_io(server).machine.sessions.values())


def post(server: Server, session: Session, name: str, *args: Any) -> None:
    """Send an event to one client, also one with a reserved name."""
    server_io(server).emit(session, name, args, {})


def answer_reserved(server: Server, name: str, value: Any) -> None:
    """Answer requests of a reserved name with ``value``."""
    server._router.request_handlers[name] = lambda *_: value  # add_listener() refuses reserved names


def launcher_of(manager: ProcessManager) -> ZygoteLauncher:
    """Return the launcher that a manager has made for itself."""
    launcher = manager._launcher  # to kill its zygote, and to use it with another collaborator
    assert isinstance(launcher, ZygoteLauncher)
    return launcher


def zygote_channel(launcher: ZygoteLauncher) -> socket.socket:
    """Return the launcher's end of its connection to the zygote."""
    zygote = launcher._zygote  # to send what no launcher sends
    assert zygote is not None
    return zygote.channel


def attempt_of(manager: ProcessManager, task: Task) -> Attempt:
    """Return the attempt of a task: it knows the launched process and the credential before the proof."""
    attempt = manager._supervisor.attempt_of(task)  # a task shows its process only when that is proven
    assert attempt is not None
    return attempt


def deadlines_kept(manager: ProcessManager) -> int:
    """Return how many deadlines, or delays if these are more, a manager keeps, also those of tasks that have ended."""
    # Only memory grows with them, too slowly to be measured.
    return max(len(manager._supervisor._deadlines), len(manager._run_queue._delays))


def loop_driver(manager: ProcessManager) -> LoopDriver:
    """Return what ticks a manager on the event loop."""
    driver = manager._loop_driver  # to wait until no tick is due: only then a change has to wake the thread
    assert driver is not None
    return driver


def callbacks_kept(end: Task | Future[Any]) -> int:
    """Return how many callbacks wait for the end of a task or future."""
    return len(end._done_callbacks)  # neither shows them; only memory grows with them
