"""Held back: frames that leave later: when their delay is over, or once another one has overtaken them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Final

from remit.transport import Peer, Sent

__all__ = ["HeldBack"]

HELD: Final = 1024
"""Frames held back for one peer, beyond which a send is `Sent.FULL`."""
NEVER: Final = float("inf")


class HeldBack:
    """Keeps frames in the order in which they leave. It is told the time, in monotonic seconds, and never asks."""

    def __init__(self) -> None:
        self.due = NEVER
        """When the next one may leave; those for which there was no room are not counted."""
        self._held: dict[Peer, deque[tuple[float, bytes]]] = {}
        self._overtaken: dict[Peer, tuple[float, bytes]] = {}

    def __bool__(self) -> bool:
        return bool(self._held or self._overtaken)

    def full(self, peer: Peer) -> bool:
        """Whether no more can be kept for a peer."""
        return len(self._held.get(peer, ())) >= HELD

    def keeps(self, peer: Peer) -> bool:
        """Whether something leaves before what is sent to a peer now."""
        return peer in self._held

    def keep(self, peer: Peer, frame: bytes, due: float) -> None:
        """Keep a frame until it is due, and what is before it has left."""
        held = self._held.setdefault(peer, deque())
        held.append((max(due, held[-1][0]) if held else due, frame))
        self.due = min(self.due, held[0][0])

    def let_pass(self, peer: Peer, frame: bytes, due: float) -> bool:
        """Keep a frame until the next one has left, or it is due; False: another one waits for that already."""
        if peer in self._overtaken:
            return False
        self._overtaken[peer] = due, frame
        self.due = min(self.due, due)
        return True

    def overtake(self, peer: Peer, due: float) -> bool:
        """One has left, or will at that time: what let it pass comes next. False if nothing did."""
        if peer not in self._overtaken:
            return False
        self.keep(peer, self._overtaken.pop(peer)[1], due)
        return True

    def release(self, now: float, send: Callable[[Peer, bytes], Sent]) -> None:
        """Send what is due, as far as there is room; note when the next is."""
        if not self:
            return
        for peer, (due, frame) in list(self._overtaken.items()):
            if due <= now:
                del self._overtaken[peer]
                self.keep(peer, frame, due)
        self.due = min((due for due, _ in self._overtaken.values()), default=NEVER)
        for peer, held in list(self._held.items()):
            while held and held[0][0] <= now:
                if send(peer, held[0][1]) is Sent.FULL:
                    break  # the link's wait returns when there is room
                held.popleft()
            if not held:
                del self._held[peer]
            elif held[0][0] > now:
                self.due = min(self.due, held[0][0])

    def release_all(self, send: Callable[[Peer, bytes], Sent]) -> None:
        """Send everything, as far as there is room."""
        self.release(NEVER, send)

    def forget(self, peer: Peer) -> None:
        """Drop what was meant for a connection that has ended."""
        self._held.pop(peer, None)
        self._overtaken.pop(peer, None)
