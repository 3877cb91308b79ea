"""Everything of Remit's internals that Doorman uses. Doorman imports no other internal module of Remit."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

from remit._patterns.names import SERVER_RESTARTED
from remit._patterns.request_reply import session_of
from remit._protocol.deadlines import DeadlineHeap as DeadlineHeap
from remit.client import Client
from remit.event import Sender
from remit.server import Server

if TYPE_CHECKING:
    import asyncio

    from remit._io.async_server import AsyncListeners
    from remit._io.loop_threads import BlockOwner


T = TypeVar("T")


def ignore_unheard(server: Server) -> None:
    """Log no more events without a listener: the server is about to close, and its listeners are removed first."""
    server._unheard_hint = ""


def on_server_restart(client: Client, handler: Callable[[], None]) -> None:
    """Call ``handler`` where listeners run, after the client has connected to a restarted server."""
    client._router.register(SERVER_RESTARTED, lambda *_: handler())


def has_room(client: Client) -> bool:
    """Return whether the send queue has room for a small event, so that `Client.emit` does not wait."""
    queue = (client._io or client._open()).send_queue
    return len(queue.pending) < queue.capacity


def set_ack_delay(client: Client, seconds: float) -> None:
    """Delay acknowledgements of a client without a thread, so that they share a frame with the next event.

    If the client answers each received event soon, the server receives one frame for each event instead of two.
    """
    (client._io or client._open()).machine.session.ack_delay = seconds


def emit_now(server: Server, client: Sender | None, name: str, args: tuple[Any, ...]) -> None:
    """Send an event to a client in this thread, without waking another thread. For a caller that awaits the reply."""
    io = server._io or server._open()
    io.emit(session_of(client), name, args, {}, bounded=False, now=True)


def call_in_thread(call: Callable[[], T]) -> asyncio.Future[T]:
    """Run a blocking call of an event loop in a thread of its own."""
    from remit._io import loop_threads  # Imports asyncio: slow, and needed only here.

    return loop_threads.call_in_thread(call)


async def finish_uncancelled(future: asyncio.Future[T]) -> T:
    """Wait until ``future`` is done. A cancellation of this wait takes effect only then."""
    from remit._io import loop_threads

    return await loop_threads.finish_uncancelled(future)


def block_owner() -> BlockOwner:
    """Return the task within the block of an asynchronous context manager, which a failure behind it cancels."""
    from remit._io.loop_threads import BlockOwner

    return BlockOwner()


def run_async_listeners(server: Server, fail: Callable[[BaseException], None]) -> AsyncListeners:
    """Run the async listeners of a server that the running loop ticks. ``fail`` is called with SystemExit and the like.

    They are cancelled by `AsyncListeners.detach`, and those of a request also when its client no longer waits.
    """
    from remit._io.async_server import AsyncListeners  # Imports asyncio: slow, and needed only here.

    listeners = AsyncListeners(server, fail)
    listeners.attach()
    return listeners
