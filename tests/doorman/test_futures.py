"""Futures of tasks, and waiting for many of them."""

from __future__ import annotations

import concurrent.futures
import threading
import time
from concurrent.futures import ALL_COMPLETED, FIRST_COMPLETED, FIRST_EXCEPTION, CancelledError, Future

import pytest
from chores import die, fail_until, stay
from internals import callbacks_kept
from managing import tick_until
from waiting import DEADLINE, wait_until

import doorman
from doorman import GroupManager, ProcessManager, State, SynchronousManager, Task
from doorman.errors import WorkerDied


@pytest.fixture
def manager(short_path):
    with ProcessManager(f"unix://{short_path}/m", grace=1.0) as manager:
        yield manager


def test_a_future_tells_what_becomes_of_its_task(manager):
    good, bad, dead = (manager.add_task(task) for task in (Task(pow, 2, 5), Task(divmod, 1, 0), Task(die, 9)))
    future = good.future
    assert future is good.future
    assert isinstance(future, concurrent.futures.Future)
    assert not future.running()
    assert future.result(DEADLINE) == 32
    assert isinstance(bad.future.exception(DEADLINE), ZeroDivisionError)
    assert isinstance(dead.future.exception(DEADLINE), WorkerDied)
    assert good.result() == 32


def test_a_future_asked_for_after_the_end_is_done(manager):
    task = manager.add_task(Task(pow, 2, 5))
    task.result(DEADLINE)
    assert task.future.done()
    assert task.future.result(0) == 32


def test_a_future_runs_when_its_task_does_and_tells_in_the_ticking_thread(manager, short_path):
    task = manager.add_task(Task(stay, short_path / "up"))
    told = []
    task.future.add_done_callback(lambda future: told.append((future, threading.get_ident())))
    tick_until(manager, task.future.running)
    assert task.future.cancel(), "a running task can be stopped"
    assert not task.future.done(), "its process has yet to end"
    tick_until(manager, task.future.done)
    assert task.future.cancelled()
    assert told == [(task.future, threading.get_ident())]
    with pytest.raises(CancelledError):
        task.future.result()


def test_a_task_is_cancelled_from_another_thread_and_the_manager_is_woken(manager, short_path):
    task = manager.add_task(Task(stay, short_path / "up"))
    asked = []

    def cancel():
        wait_until((short_path / "up").exists)
        asked.append(task.future.cancel())

    thread = threading.Thread(target=cancel)
    thread.start()
    with pytest.raises(CancelledError):
        task.future.result(DEADLINE)
    thread.join()
    assert asked == [True]
    assert task.future.cancel(), "it is cancelled"


def test_a_waiting_task_is_cancelled_without_a_process(manager):
    task = manager.add_task(Task(pow, 2, 5))
    assert task.future.cancel()
    assert task.future.cancelled()
    assert task.attempt == 0


def test_a_future_outlives_the_attempts_of_its_task(manager, tmp_path):
    task = manager.add_task(Task(fail_until, tmp_path / "tries", 3, retries=2))
    assert task.future.result(DEADLINE) == 3


def test_a_task_that_nobody_runs_cannot_be_cancelled():
    assert not Task(pow, 2, 5).future.cancel()


def test_another_thread_waits_for_a_future(manager):
    task = manager.add_task(Task(pow, 2, 5))
    got = []
    thread = threading.Thread(target=lambda: got.append(task.future.result(DEADLINE)))
    thread.start()
    manager.run(DEADLINE)
    thread.join(DEADLINE)
    assert got == [32]


def test_tasks_come_as_they_end(manager, short_path):
    slow = manager.add_task(Task(stay, short_path / "up"))
    quick = [manager.add_task(Task(pow, 2, number)) for number in range(4)]
    ended = doorman.as_completed([slow, *quick, quick[0].future])
    first = [next(ended) for _ in quick]
    assert {getattr(each, "task", each) for each in first} == set(quick)
    slow.cancel()
    assert next(ended) is slow
    assert next(ended, None) is None


def test_what_does_not_end_in_time_is_told(manager, short_path):
    slow = manager.add_task(Task(stay, short_path / "up"))
    with pytest.raises(TimeoutError, match=r"1 \(of 1\) futures unfinished"):
        next(doorman.as_completed([slow], timeout=0.1))
    done, not_done = doorman.wait([slow], timeout=0.1)
    assert (done, not_done) == (set(), {slow})
    assert callbacks_kept(slow.future) == 0, "who waits again and again leaves nothing behind"


@pytest.mark.parametrize("when", [FIRST_COMPLETED, FIRST_EXCEPTION])
def test_a_wait_ends_early(manager, short_path, when):
    slow = manager.add_task(Task(stay, short_path / "up"))
    failing = manager.add_task(Task(divmod, 1, 0))
    done, not_done = doorman.wait([slow, failing.future], DEADLINE, return_when=when)
    assert done == {failing.future}
    assert not_done == {slow}


def test_a_wait_for_all(manager):
    tasks = [manager.add_task(Task(pow, 2, number)) for number in range(3)]
    waited = doorman.wait(tasks, DEADLINE, return_when=ALL_COMPLETED)
    assert waited.done == set(tasks)
    with pytest.raises(ValueError, match="FIRST_COMPLETED"):
        doorman.wait(tasks, return_when="SOON")


def test_groups_and_synchronous_tasks_have_futures_too(short_path):
    with GroupManager(ProcessManager(f"unix://{short_path}/g")) as group:
        first, second = group.add_task(Task(pow, 2, 1)), group.add_task(Task(pow, 2, 2))
        assert list(doorman.as_completed([second, first], DEADLINE)) == [first, second]
    with SynchronousManager() as here:
        task = here.add_task(Task(pow, 2, 3))
        assert task.future.result(DEADLINE) == 8
        waiting = here.add_task(Task(pow, 2, 3, can_run=lambda: False))
        cancelling = threading.Thread(target=waiting.future.cancel)
        cancelling.start()
        with pytest.raises(CancelledError):
            waiting.future.result(DEADLINE)
        cancelling.join()


def test_a_wait_for_the_futures_of_two_managers(short_path, manager):
    with ProcessManager(f"unix://{short_path}/other") as other:
        tasks = [each.add_task(Task(time.sleep, 0.05)) for each in (manager, other)]
        assert doorman.wait(tasks, DEADLINE).done == set(tasks)


def test_a_future_of_another_thread_ends_a_wait_for_an_idle_manager(manager, short_path):
    slow = manager.add_task(Task(stay, short_path / "up"))
    wait_until(lambda: manager.tick() and slow.state is State.RUNNING)
    foreign: Future[int] = Future()
    timer = threading.Timer(0.1, foreign.set_result, [1])
    timer.start()
    began = time.monotonic()
    assert doorman.wait([slow, foreign], DEADLINE, return_when=FIRST_COMPLETED).done == {foreign}
    assert time.monotonic() - began < 5.0
    timer.join()


@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt])
def test_a_callback_that_exits_is_raised_by_the_tick_after_the_other_callbacks(manager, error):
    def exits(_):
        raise error("of a callback")

    task, called = manager.add_task(Task(abs, -3)), []
    for callback in (exits, called.append, exits, called.append):
        task.future.add_done_callback(callback)
    with pytest.raises(error):
        manager.run(DEADLINE)
    assert called == [task.future] * 2
    manager.run(DEADLINE)
    assert task.result() == 3
    assert not manager.busy
