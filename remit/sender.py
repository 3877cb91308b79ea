"""Sender: who emitted an event, as a listener sees it, and the way back to that client."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from remit.credentials import Credentials

__all__ = ["Sender"]


class Sender:
    """The client at the other end of a session."""

    __slots__ = ("_answer", "_credentials", "_here", "id", "session")

    def __init__(
        self,
        identifier: str,
        answer: Callable[[str, tuple[Any, ...], dict[str, Any]], None],
        credentials: Callable[[], Credentials | None],
        here: Callable[[], bool],
        session: object | None = None,
    ) -> None:
        self.id = identifier
        """32 hexadecimal digits, the same for all events of one client in one process."""
        self.session = session
        """What Remit itself keeps of this client: nothing that a listener could use."""
        self._answer = answer
        self._credentials = credentials
        self._here = here

    @property
    def credentials(self) -> Credentials | None:
        """What the kernel attests of the client's process; None where the transport cannot ask it."""
        return self._credentials()

    @property
    def connected(self) -> bool:
        """Whether the client is known to be connected now; its session outlives its connections."""
        return self._here()

    def emit(self, name: str, /, *args: Any, **kwargs: Any) -> None:
        """Emit an event to this client alone, acknowledged like any other.

        Raises CodecError, FrameTooLarge, QueueFull, and EmitError when its session has ended.
        """
        self._answer(name, args, kwargs)

    def __repr__(self) -> str:
        return f"<Sender {self.id[:8]}>"
