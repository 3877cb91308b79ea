"""A waker in several threads and signal handlers: no wake is lost, and none makes later waits spin."""

from __future__ import annotations

import itertools
import select
from collections.abc import Callable

import pytest
from injection import call_with, interrupt

from remit.transport import UNREAD_CLEARS, Waker


def is_readable(waker: Waker) -> bool:
    return bool(select.select([waker], [], [], 0)[0])


def interrupted(act: Callable[[Waker], None]) -> Callable[[Waker], None]:
    def act_and_interrupt(waker: Waker) -> None:
        act(waker)
        interrupt()

    return act_and_interrupt


def nothing(_: Waker) -> None:
    pass


@pytest.mark.parametrize("call", [Waker.wake, Waker.clear])
@pytest.mark.parametrize(
    ("action", "clears"),
    [
        (Waker.wake, 1),
        (Waker.clear, 1),
        (interrupted(nothing), 1),
        (interrupted(Waker.wake), UNREAD_CLEARS),
        (interrupted(Waker.clear), UNREAD_CLEARS),
    ],
    ids=["woken", "cleared", "interrupted", "woken and interrupted", "cleared and interrupted"],
)
@pytest.mark.parametrize("woken", [False, True], ids=["clear before", "woken before"])
def test_a_waker_at_any_line(
    call: Callable[[Waker], None], action: Callable[[Waker], None], clears: int, woken: bool
) -> None:
    for line in itertools.count(1):
        waker = Waker()
        if woken:
            waker.wake()
        outcome = call_with(lambda: action(waker), line, lambda: call(waker))  # noqa: B023
        # An interrupt of clear() itself leaves it to a later one, as does one of wake() during a clear().
        for _ in range(UNREAD_CLEARS if call is Waker.clear and outcome.interrupted else clears):
            waker.clear()
        assert not is_readable(waker), outcome.place
        waker.wake()
        assert is_readable(waker), outcome.place
        waker.clear()
        assert not is_readable(waker), outcome.place
        if outcome.place is None:
            break
    assert line > 1
