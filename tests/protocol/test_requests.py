"""Open requests and their deadlines."""

from __future__ import annotations

from remit._protocol.deadlines import SPARE_ENTRIES, DeadlineHeap
from remit._protocol.requests import OpenRequests


def test_nothing_is_kept_of_closed_questions_behind_an_open_one() -> None:
    requests: OpenRequests[None] = OpenRequests()
    first = requests.add("first", None, 10.0, idempotent=False)
    for number in range(1000):
        requests.pop(requests.add("next", None, 20.0 + number, idempotent=False).id)
        assert requests.next_deadline == 10.0
        assert len(requests.deadlines) <= SPARE_ENTRIES + 3
    for request in requests.expired(15.0):
        assert requests.pop(request.id) is first
    assert requests.next_deadline == float("inf")


def test_a_deadline_that_is_looked_after_is_not_lost() -> None:
    requests: OpenRequests[None] = OpenRequests()
    asked = [requests.add(str(number), None, float(number), idempotent=False) for number in range(1000, 0, -1)]
    for request in asked[::2]:
        requests.pop(request.id)
    requests.add("last", None, 0.5, idempotent=False)
    assert [request.name for request in requests.expired(2000.0)] == ["last", *map(str, range(1, 1000, 2))]


def test_a_deadline_that_is_scheduled_while_a_dead_one_is_removed_is_not_lost() -> None:
    heap: DeadlineHeap[str] = DeadlineHeap(lambda item: is_live(item))

    def is_live(item: str) -> bool:
        if item == "dead":  # Here another thread schedules an earlier deadline.
            heap.schedule(1.0, "earlier")
        return item != "dead"

    heap.schedule(2.0, "dead")
    heap.schedule(3.0, "last")
    assert heap.next_deadline() == 3.0
    assert heap.next_deadline() == 1.0
    assert list(heap.pop_due(3.0)) == ["earlier", "last"]


def test_the_next_timeout_is_bounded() -> None:
    heap: DeadlineHeap[str] = DeadlineHeap()
    assert heap.next_timeout(0.0, 60.0) == 60.0
    heap.schedule(10.0, "one")
    assert heap.next_timeout(0.0, 60.0) == 10.0
    assert heap.next_timeout(11.0, 60.0) == 0.0
