"""Mutants whose `send` blocks or does not say what became of a frame."""

from __future__ import annotations

from mutants.making import (
    QUICK,
    Sound,
    hanging,
    mutant,
    released,
)
from remit.transport import (
    Frame,
    Peer,
    Sent,
    Wakeable,
)


@hanging("any_bytes_pass")
class IsAlwaysFull(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, b"")
        return Sent.FULL if said is Sent.ACCEPTED else said


@mutant("a_full_queue_says_so_and_goes_on", "declare a window, or return FULL")
class DropsInsteadOfFull(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        return Sent.ACCEPTED if said is Sent.FULL else said


@mutant("a_full_queue_says_so_and_goes_on", "repeated|out of order")
class TakesAndSaysFull(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        if said is Sent.FULL:
            self._routes[peer].target.enqueue(Frame(self._routes[peer].ours, frame))
        return said


@mutant("a_burst_is_taken_or_refused", "frames arrive; ", deadline=QUICK)
class DropsOfABurst(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        route = self._routes.get(peer)
        return Sent.ACCEPTED if route and route.queued > 300 else super().send(peer, frame)


@mutant("a_full_queue_says_so_and_goes_on", "declare a window, or return FULL")
class HasNoBound(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        self._capacity += 1
        return super().send(peer, frame)


@mutant("a_full_queue_says_so_and_goes_on", "no Down or Gap", deadline=QUICK, window=8 << 20)
class LosesWithinItsWindow(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        route = self._routes.get(peer)
        return Sent.ACCEPTED if route and route.queued > 200 else super().send(peer, frame)


@hanging("a_full_queue_says_so_and_goes_on")
class DoesNotSayThatThereIsRoom(Sound):
    def wait(self, timeout: float, waker: Wakeable | None = None) -> None:
        if timeout > 60 and not self.inbox:
            released.wait()
        super().wait(timeout, waker)


@hanging("a_full_queue_does_not_block")
class BlocksInSend(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        while (said := super().send(peer, frame)) is Sent.FULL and not released.wait(0.05):
            pass
        return said


@mutant("a_full_queue_does_not_block", "send on a full queue blocks")
class DawdlesInSend(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        if said is Sent.FULL:
            released.wait(0.06)
        return said


@mutant("send_without_a_server_is_gone", "returned accepted")
class AcceptsForNobody(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        return Sent.ACCEPTED if said is Sent.GONE else said


@mutant("an_unknown_peer_is_gone", "returned full")
class WaitsForStrangers(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        said = super().send(peer, frame)
        return Sent.FULL if said is Sent.GONE and self._routes else said
