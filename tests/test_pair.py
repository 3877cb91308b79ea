"""Pairs: exactly two, over every transport."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from queue import Empty, SimpleQueue

import pytest
from waiting import DEADLINE, wait_until

from remit import Pair, Server
from remit.errors import LinkClosed, LocationInUse, PairBusy, PeerLost, RequestTimeout, SignalTimeout
from remit.transport import next_item


@pytest.fixture
def bound(location) -> Iterator[Pair]:
    with Pair.bind(location, lease=1.0) as pair:
        yield pair


def test_two_signal_each_other_in_order(bound):
    with Pair.connect(bound.location) as joined:
        for number in range(200):
            joined.signal(number)
            bound.signal({"number": number})
        assert [bound.wait(DEADLINE) for _ in range(200)] == list(range(200))
        assert [joined.wait(DEADLINE) for _ in range(200)] == [{"number": number} for number in range(200)]
        joined.signal()
        assert bound.wait(DEADLINE) is None


def test_a_third_one_is_refused_until_the_seat_is_free(bound):
    with Pair.connect(bound.location):
        for _ in range(2):
            with pytest.raises(PairBusy, match="already has two members"):
                Pair.connect(bound.location)
    with pytest.raises(PeerLost, match="has left"):
        bound.wait(DEADLINE)
    with Pair.connect(bound.location) as joined:
        joined.signal("new")
        assert bound.wait(DEADLINE) == "new"


def test_two_cannot_bind_one_place(bound):
    with pytest.raises(LocationInUse):
        Pair.bind(bound.location)


def test_a_signal_waits_for_somebody_to_come(bound):
    thread = threading.Thread(target=bound.signal, args=("early",))
    thread.start()
    with Pair.connect(bound.location) as joined:
        assert joined.wait(DEADLINE) == "early"
    thread.join(DEADLINE)


def test_waits_end_in_time(bound):
    with pytest.raises(SignalTimeout, match="no other member has joined"):
        bound.signal(timeout=0.02)
    with Pair.connect(bound.location) as joined, pytest.raises(SignalTimeout, match=r"0\.02 s"):
        joined.wait(0.02)


class Strict(SimpleQueue):
    """Refuses the `get` that waits without end in CPython if the thread is suspended for its time just then."""

    is_held = False

    def get_nowait(self):
        try:
            return super().get_nowait()
        except Empty:
            self.is_held = True  # Its lock, until the next put().
            raise

    def get(self, block=True, timeout=None):
        assert self.is_held
        return super().get(block, timeout)


def test_no_wait_begins_while_the_lock_of_its_queue_is_free():
    items = Strict()
    items.put(1)
    assert next_item(items, DEADLINE) == 1
    with pytest.raises(Empty):
        next_item(items, 1e-6)


def test_who_joins_lets_itself_be_heard_within_the_owners_lease():
    with Pair.bind("memory://leases", lease=2.0) as bound, Pair.connect("memory://leases", lease=60.0) as joined:
        with pytest.raises(SignalTimeout):
            bound.wait(3.5)
        joined.signal("still here")
        assert bound.wait(DEADLINE) == "still here"


def test_whoever_waits_is_told_that_the_location_was_lost(monkeypatch):
    def lost(_: Server) -> int:
        raise LocationInUse("another server took it over")

    with Pair.bind("memory://lost") as bound:
        monkeypatch.setattr(Server, "tick", lost)
        for _ in range(2):
            with pytest.raises(PeerLost, match="memory://lost is lost: another server took it over"):
                bound.wait(DEADLINE)
        with pytest.raises(PeerLost, match="is lost"):
            bound.signal()
        monkeypatch.undo()


def test_without_the_other_one_joining_ends_in_time(location):
    if location.port == 0:
        location = location.replace(port=9)
    with pytest.raises(RequestTimeout):
        Pair.connect(location, timeout=0.1)


def test_who_is_closed_tells_the_other(location):
    bound = Pair.bind(location)
    with Pair.connect(bound.location) as joined:
        bound.signal("last")
        bound.close()
        assert joined.wait(DEADLINE) == "last"
        with pytest.raises(PeerLost, match="has left"):
            joined.wait(DEADLINE)
        with pytest.raises(PeerLost):
            joined.signal()
    for pair in (bound, joined):
        pair.close()
        with pytest.raises(LinkClosed):
            pair.wait(0)
        with pytest.raises(LinkClosed):
            pair.signal()


JOINER = """
import sys
from remit import Pair
pair = Pair.connect(sys.argv[1], lease=1.0)
pair.signal("up")
print(flush=True)
try:
    while True:
        pair.signal(pair.wait(30))
except Exception as error:
    print(type(error).__name__, flush=True)
"""


@pytest.fixture
def crossing(crossing_location) -> Iterator[Pair]:
    with Pair.bind(crossing_location, lease=1.0) as pair:
        yield pair


def test_a_killed_one_frees_the_seat(crossing):
    with subprocess.Popen([sys.executable, "-c", JOINER, crossing.location.url]) as process:
        assert crossing.wait(DEADLINE) == "up"
        process.kill()
    with pytest.raises(PeerLost):
        crossing.wait(DEADLINE)
    with Pair.connect(crossing.location) as joined:
        joined.signal("after")
        assert crossing.wait(DEADLINE) == "after"


def test_one_that_was_stopped_for_too_long_is_fenced(crossing):
    """It comes back when another one has its seat: what it says is refused, and it is told."""
    command = [sys.executable, "-c", JOINER, crossing.location.url]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as stale:
        assert crossing.wait(DEADLINE) == "up"
        crossing.signal("kept until it wakes")
        assert crossing.wait(DEADLINE) == "kept until it wakes"
        os.kill(stale.pid, signal.SIGSTOP)
        try:
            with pytest.raises(PeerLost):
                crossing.wait(DEADLINE)
            with Pair.connect(crossing.location, lease=DEADLINE) as joined:
                os.kill(stale.pid, signal.SIGCONT)
                told, _ = stale.communicate(timeout=DEADLINE)
                assert told.split() == ["PeerLost"]
                joined.signal("the new one's")
                assert crossing.wait(DEADLINE) == "the new one's"
        finally:
            stale.kill()


def test_two_threads_of_a_relay():
    """Step 1 signals step 2, step 2 signals step 3."""
    with Pair.bind("memory://step2") as two, Pair.bind("memory://step3") as three:

        def step1() -> None:
            with Pair.connect("memory://step2") as pair:
                pair.signal()

        def step2() -> None:
            two.wait(DEADLINE)
            with Pair.connect("memory://step3") as pair:
                pair.signal("done")

        threads = [threading.Thread(target=step) for step in (step1, step2)]
        for thread in threads:
            thread.start()
        assert three.wait(DEADLINE) == "done"
        for thread in threads:
            thread.join(DEADLINE)
        wait_until(lambda: not any(thread.is_alive() for thread in threads))
