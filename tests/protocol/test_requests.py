"""Requests: what a client keeps of its open questions."""

from __future__ import annotations

from remit._protocol.requests import SPARE, OpenRequests


def test_nothing_is_kept_of_closed_questions_behind_an_open_one() -> None:
    requests: OpenRequests[None] = OpenRequests()
    first = requests.add("first", None, 10.0, idempotent=False)
    for number in range(1000):
        requests.pop(requests.add("next", None, 20.0 + number, idempotent=False).id)
    assert len(requests._dues) <= SPARE + 4
    assert requests.next_deadline == 10.0
    assert requests.pop_expired(15.0) == [first]
    assert requests.next_deadline == float("inf")


def test_a_deadline_that_is_looked_after_is_not_lost() -> None:
    requests: OpenRequests[None] = OpenRequests()
    asked = [requests.add("n", None, float(number), idempotent=False) for number in range(1000, 0, -1)]
    for request in asked[::2]:
        requests.pop(request.id)
    requests.add("last", None, 0.5, idempotent=False)
    assert [request.deadline for request in requests.pop_expired(2000.0)] == [
        0.5,
        *(float(n) for n in range(1, 1000, 2)),
    ]
