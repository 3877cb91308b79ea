"""Groups that fail: the next one goes on, or the rest is cancelled; each way told."""

from __future__ import annotations

import signal

import pytest
from grouping import Watched, fail, run
from internals import launcher_of
from waiting import DEADLINE

from doorman import GroupManager, ProcessManager, State, SynchronousManager, Task, current_task
from doorman.errors import TaskCancelled
from doorman.process import Process


def test_by_default_the_next_group_goes_on(groups):
    bad, after = groups.add_task(Task(fail)), groups.add_task(Task(len, "abc"))
    run(groups)
    assert (bad.state, after.result()) == (State.FAILED, 3)
    assert groups.failed == ()


def test_a_failure_stops_the_rest_once_the_others_of_its_group_have_ended(groups):
    groups.on_failure = "stop"
    heard: list[str] = []
    bad, other = groups.add_group([Watched(heard, "bad", fail), Watched(heard, "other")])
    rest = [*groups.add_group([Watched(heard, "b1"), Watched(heard, "b2")]), groups.add_task(Watched(heard, "c"))]
    run(groups)
    assert (bad.state, other.state) == (State.FAILED, State.DONE)
    assert [task.state for task in rest] == [State.CANCELLED] * 3
    assert max(heard.index(f"bad {State.FAILED}"), heard.index("other done")) < heard.index("b1 cancelled")
    assert "b1 running" not in heard
    assert groups.failed == (bad,)
    with pytest.raises(TaskCancelled, match="'c' was not started: task 'bad' of a group before it failed") as raised:
        rest[2].result()
    assert raised.value.__cause__ is bad.exception()


def test_what_is_added_after_a_failure_is_cancelled_until_it_is_told_to_resume(groups):
    groups.on_failure = "stop"
    groups.add_task(Task(fail, name="bad"))
    run(groups)
    late = groups.add_task(Task(len, "abc"))
    with pytest.raises(TaskCancelled, match="resume"):
        late.result(DEADLINE)
    groups.resume()
    assert groups.failed == ()
    assert groups.add_task(Task(len, "abc")).result(DEADLINE) == 3
    groups.resume()
    assert groups.add_task(Task(len, "ab")).result(DEADLINE) == 2


def test_what_is_added_by_who_hears_of_a_cancellation_is_cancelled_too(groups):
    groups.on_failure = "stop"
    late: list[Task] = []
    groups.add_task(Task(fail))
    rest = groups.add_task(Task(len, "abc"))
    rest.future.add_done_callback(lambda _: late.append(groups.add_task(Task(len, "ab"))))
    run(groups)
    assert [task.state for task in (rest, *late)] == [State.CANCELLED] * 2


def test_a_group_may_have_a_policy_of_its_own(groups):
    groups.add_group([Task(fail)], on_failure="continue")
    between = groups.add_task(Task(len, "abc"))
    bad = groups.add_group([Task(fail)], on_failure="stop")
    never = groups.add_task(Task(len, "abc"))
    run(groups)
    assert between.result() == 3
    assert (groups.failed, never.state) == (bad, State.CANCELLED)


def test_a_member_that_succeeds_when_it_is_tried_again_has_not_failed(groups):
    groups.on_failure = "stop"

    def second_time_lucky() -> int:
        assert current_task().attempt == 2
        return 2

    groups.add_task(Task(second_time_lucky, retries=1))
    after = groups.add_task(Task(len, "abc"))
    run(groups)
    assert after.result() == 3


def test_a_member_that_somebody_cancels_has_not_failed(groups):
    groups.on_failure = "stop"
    unwanted, _ = groups.add_group([Task(len, "abc"), Task(len, "ab")])
    after = groups.add_task(Task(len, "a"))
    assert unwanted.cancel()
    run(groups)
    assert after.result() == 1


@pytest.mark.parametrize("end", ["expires", "dies", "is lost"])
def test_a_member_that_expires_or_dies_has_failed(short_path, end):
    with GroupManager(ProcessManager(f"unix://{short_path}/m", grace=0.1), on_failure="stop") as groups:
        bad = groups.add_task(Task(signal.pause, expires_in=0.1 if end == "expires" else None))
        after = groups.add_task(Task(len, "abc"))
        while bad.state is not State.RUNNING:
            groups.tick()
            groups.wait(0.05)
        if end == "dies":
            with bad.identity.open() as process:
                process.signal(signal.SIGKILL)
        elif end == "is lost":
            with Process.open(launcher_of(groups.manager).pid) as zygote:
                zygote.signal(signal.SIGKILL)
        run(groups)
        assert bad.state == {"expires": "expired", "dies": "failed", "is lost": "lost"}[end]
        with pytest.raises(TaskCancelled, match=f"a group before it .*{bad.state}"):
            after.result(DEADLINE)
        assert after.attempt == 0


def test_a_policy_that_is_none_is_refused():
    with SynchronousManager() as inner:
        with pytest.raises(ValueError, match="one of continue, stop, not 'retry'"):
            GroupManager(inner, on_failure="retry")
        with pytest.raises(ValueError, match="one of continue, stop"):
            GroupManager(inner).add_group([], on_failure="")
