"""Mutants that lose, double, mix up or mutilate frames."""

from __future__ import annotations

import itertools
from typing import Any

from mutants.making import (
    QUICK,
    Sound,
    cut,
    mutant,
)
from remit.errors import FrameTooLarge
from remit.transport import (
    Arrival,
    Frame,
    Peer,
    Sent,
)


@mutant("frames_arrive_in_order", "not within .* 2001 frames arrive; .* no Down or Gap", deadline=QUICK)
class DropsSilently(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        self.sent += 1
        return Sent.ACCEPTED if self.sent % 7 == 0 else super().send(peer, frame)


@mutant("no_frame_arrives_twice", "repeated")
class Doubles(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        self.sent += 1
        if self.sent == 21:
            super().send(peer, frame)
        return super().send(peer, frame)


@mutant("frames_arrive_in_order", "out of order")
class Reorders(Sound):
    def receive(self) -> Arrival | None:
        if len(self.inbox) > 5 and all(isinstance(each[0], Frame) for each in itertools.islice(self.inbox, 2)):
            self.sent += 1
            if self.sent % 10 == 0:
                self.inbox.insert(1, self.inbox.popleft())
        return super().receive()


@mutant("sizes_arrive_in_order", "out of order")
class LetsSmallFramesOvertake(Sound):
    def enqueue(self, arrival: Arrival, route: Any = None) -> None:
        last = self.inbox[-1][0] if self.inbox else None
        small = isinstance(arrival, Frame) and isinstance(last, Frame) and len(arrival.data) < 1000 < len(last.data)
        super().enqueue(arrival, route)
        if small:
            self.inbox.insert(len(self.inbox) - 2, self.inbox.pop())


@mutant("frames_arrive_whole", "repeated or invented")
class Splits(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        if len(frame) > 1000 and super().send(peer, frame[:1000]) is Sent.ACCEPTED:
            frame = frame[1000:]
        return super().send(peer, frame)


@mutant("frames_keep_their_edges", "frames arrive; ", deadline=QUICK)
class Merges(Sound):
    def receive(self) -> Arrival | None:
        arrival = super().receive()
        following = self.inbox[0][0] if self.inbox else None
        if isinstance(arrival, Frame) and isinstance(following, Frame):
            super().receive()
            return arrival._replace(data=arrival.data + following.data)
        return arrival


@mutant("frames_arrive_whole", "altered")
class Truncates(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        return super().send(peer, frame[:65_535])


@mutant("any_bytes_pass", "altered")
class EndsAtZero(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        return super().send(peer, frame.partition(b"\0")[0])


@mutant("a_larger_frame_is_refused", "send returned accepted for a frame", max_frame=1 << 20)
class TakesTooLargeFrames(Sound):
    def _check(self, frame: bytes = b"") -> None:
        super()._check()


@mutant("a_larger_frame_is_refused", "followed by .*Down", max_frame=1 << 20)
class CutsOverTooLargeFrames(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        try:
            return super().send(peer, frame)
        except FrameTooLarge:
            cut(self.name)
            raise


@mutant("the_largest_frame_passes", "frames arrive; ", deadline=QUICK)
class CannotCarryWhatItDeclares(Sound):
    def send(self, peer: Peer, frame: bytes) -> Sent:
        return Sent.ACCEPTED if len(frame) > 1_100_000 else super().send(peer, frame)
