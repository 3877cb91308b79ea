"""A crew: workers that serve many calls, over every transport; a death costs one call."""

from __future__ import annotations

import os
import signal
import threading
import time
from concurrent import futures

import pytest
from chores import answer, die
from managing import tick_until
from threads import of_each_thread
from waiting import DEADLINE, wait_until

import doorman
import doorman.pools.pool_worker
from doorman import Crew, ProcessManager, current_task
from doorman._worker.signed_channel import CHUNK_BYTES
from doorman.errors import IdentityRefused, PoolFailed, TaskCancelled, TaskFailed, TaskNotPicklable, WorkerDied
from doorman.pools.messages import CrashRecord, Kind


@pytest.fixture
def manager(short_path):
    with ProcessManager(f"unix://{short_path}/m", grace=1.0) as manager:
        yield manager


def hold(up, release):
    up.touch()
    while not release.exists():
        time.sleep(0.002)
    return os.getpid()


def switches(pid):
    """Count how often the threads of a process have gone to sleep."""
    statuses = of_each_thread("status", pid)
    return [int(status.split("voluntary_ctxt_switches:")[1].split()[0]) for status in statuses]


def test_workers_serve_many_calls_in_both_directions_of_any_size(crossing_location):
    large = os.urandom(3 * CHUNK_BYTES + 1)
    with ProcessManager(crossing_location) as manager, Crew(manager, 2) as crew:
        calls = [crew.submit(answer, number) for number in range(500)]
        assert [call.result(DEADLINE)[0] for call in calls] == [2 * number for number in range(500)]
        echoed = [crew.submit(bytes, large), crew.submit(len, large)]
        assert [call.result(DEADLINE) for call in echoed] == [large, len(large)]
        assert {call.worker.pid for call in calls} == {call.result()[1] for call in calls}
        assert {call.worker for call in calls} <= set(crew.workers)
        assert 1 <= len(crew.workers) <= 2


def test_what_a_call_raises_comes_with_the_workers_traceback(manager):
    with Crew(manager, 1) as crew:
        error = crew.submit(divmod, 1, 0).exception(DEADLINE)
        assert isinstance(error, ZeroDivisionError)
        assert isinstance(error.__cause__, TaskFailed)
        assert "doorman/pools/pool_worker.py" in str(error.__cause__)
        assert "an exit is no end" in str(
            crew.submit(exec, "raise SystemExit('an exit is no end')").exception(DEADLINE)
        )
        assert crew.submit(pow, 2, 3).result(DEADLINE) == 8


def test_what_cannot_be_pickled_is_told(manager):
    with Crew(manager, 1) as crew:
        refused = crew.submit(len, threading.Lock()).exception(DEADLINE)
        assert isinstance(refused, TaskNotPicklable)
        assert "argument 1 <unlocked _thread.lock object" in str(refused)
        with pytest.raises(TypeError, match="returned a lock that cannot be pickled"):
            crew.submit(threading.Lock).result(DEADLINE)


def test_functions_of_no_module_travel(manager):
    offset = 3
    with Crew(manager, 1) as crew:
        assert crew.submit(lambda number: number + offset, 1).result(DEADLINE) == 4


def test_a_death_costs_the_call_that_was_running_and_no_other(manager, tmp_path):
    """Neither those that had ended before it in the same worker, nor those behind it, nor is any run twice."""

    def note(number):
        if number == 150:
            os.kill(os.getpid(), signal.SIGSEGV)
        with (tmp_path / "log").open("a") as file:
            file.write(f"{number}\n")
        return number

    with Crew(manager, 1) as crew:
        for number in range(1000, 1100):
            crew.submit(note, number)
        crew.run(DEADLINE)
        first = crew.workers[0]
        calls = [crew.submit(note, number) for number in range(300)]
        doorman.wait(calls, DEADLINE)
        errors = {number: call.exception() for number, call in enumerate(calls) if call.exception()}
        assert list(errors) == [150]
        assert isinstance(errors[150], WorkerDied)
        assert errors[150].signal is signal.SIGSEGV
        assert errors[150].pid == first.pid == calls[150].worker.pid
        assert calls[299].worker.pid != first.pid
        ran = list(map(int, (tmp_path / "log").read_text().split()))
        assert sorted(ran) == [*range(150), *range(151, 300), *range(1000, 1100)]


def test_an_exit_code_is_told(manager):
    with Crew(manager, 1) as crew:
        error = crew.submit(os._exit, 7).exception(DEADLINE)
        assert isinstance(error, WorkerDied)
        assert error.exit_code == 7


def test_an_idle_worker_that_dies_costs_nothing(manager):
    with Crew(manager, 1) as crew:
        _, pid = crew.submit(answer, 1).result(DEADLINE)
        assert pid == crew.workers[0].pid
        with crew.workers[0].open() as process:
            process.signal(signal.SIGKILL)
            assert process.wait(DEADLINE)
        value, other = crew.submit(answer, 2).result(DEADLINE)
        assert (value, other != pid) == (4, True)


def test_a_long_call_does_not_hold_up_those_behind_it(manager, tmp_path):
    """Even where the worker has been given them already."""
    with Crew(manager, 2) as crew:
        for _ in range(200):
            crew.submit(answer, 1)
        crew.run(DEADLINE)
        held = [crew.submit(hold, tmp_path / "up", tmp_path / "release")]
        quick = [crew.submit(answer, number) for number in range(50)]
        assert doorman.wait(quick, DEADLINE).not_done == set()
        assert not held[0].done()
        (tmp_path / "release").touch()
        assert held[0].result(DEADLINE) == held[0].worker.pid


def test_calls_that_come_while_a_long_one_runs_are_not_given_to_its_worker_for_good(manager, tmp_path):
    """The worker was fast until now, and may have many calls in hand; but it began this one with nothing behind it."""
    with Crew(manager, 2) as crew:
        for number in range(20):
            crew.submit(answer, number).result(DEADLINE)
        held = crew.submit(hold, tmp_path / "up", tmp_path / "release")
        tick_until(manager, (tmp_path / "up").exists)
        quick = [crew.submit(answer, number) for number in range(50)]
        assert doorman.wait(quick, DEADLINE).not_done == set()
        assert not held.done()
        (tmp_path / "release").touch()
        assert held.result(DEADLINE) not in {call.worker.pid for call in quick}


def test_a_worker_that_was_idle_for_long_sleeps_and_looks_after_its_calls_again(manager, tmp_path):
    def look_only_once():
        doorman.pools.pool_worker.IDLE_CHECKS = 0

    def sleeps(pid):
        before = switches(pid)
        time.sleep(0.1)
        return switches(pid) == before

    with Crew(manager, 1, initializer=look_only_once) as crew:
        for number in range(3):
            doorman.wait([crew.submit(answer, 1) for _ in range(20)], DEADLINE)
            wait_until(lambda: sleeps(crew.workers[0].pid))
            up, release = tmp_path / f"up{number}", tmp_path / f"release{number}"
            held = crew.submit(hold, up, release)
            behind = [crew.submit(answer, 1) for _ in range(5)]
            tick_until(manager, up.exists)
            tick_until(manager, lambda behind=behind: not any(call.running() for call in behind))
            release.touch()
            assert held.result(DEADLINE)


def test_a_crew_that_is_left_early_begins_nothing_more_and_settles_every_call(manager, tmp_path):
    """Also calls that the worker has in hand, which come back when it is stopped."""
    with Crew(manager, 1) as crew:
        for number in range(50):
            crew.submit(answer, number).result(DEADLINE)
        held = crew.submit(hold, tmp_path / "up", tmp_path / "release")
        rest = [crew.submit(answer, number) for number in range(20)]
        tick_until(manager, (tmp_path / "up").exists)
        [worker] = crew.workers
    tick_until(manager, lambda: held.done() and all(call.done() for call in rest))
    assert isinstance(held.exception(0), TaskCancelled)
    assert all(call.cancelled() for call in rest)
    assert futures.wait(rest, 0).not_done == set(), "whoever waits by the standard library is told"
    assert worker.pid == held.worker.pid
    assert not manager.busy, "nobody is started for calls that nobody wants"


def test_a_call_that_waits_can_be_cancelled_and_one_that_runs_cannot(manager, tmp_path):
    with Crew(manager, 1) as crew:
        running = crew.submit(hold, tmp_path / "up", tmp_path / "release")
        waiting = [crew.submit(hold, tmp_path / "never", tmp_path / "release") for _ in range(3)]
        tick_until(manager, (tmp_path / "up").exists)
        assert not running.cancel()
        assert waiting[0].cancel()
        assert crew.cancel_waiting() == 2
        (tmp_path / "release").touch()
        assert running.result(DEADLINE)
        assert not (tmp_path / "never").exists()


def test_a_worker_is_replaced_after_its_calls(manager):
    with Crew(manager, 1, max_tasks_per_child=3) as crew:
        pids = [crew.submit(answer, number).result(DEADLINE)[1] for number in range(7)]
        assert [len(set(pids[at : at + 3])) for at in (0, 3, 6)] == [1, 1, 1]
        assert len(set(pids)) == 3
        many = [crew.submit(answer, number) for number in range(20)]
        doorman.wait(many, DEADLINE)
        counts = [sum(call.result()[1] == pid for call in many) for pid in {call.result()[1] for call in many}]
        assert max(counts) <= 3
        assert sum(counts) == 20


def test_a_worker_that_has_grown_is_replaced(manager):
    kept = []

    def grow(megabytes):
        import builtins

        builtins.kept = [*getattr(builtins, "kept", []), bytearray(os.urandom(1024)) * 1024 * megabytes]
        return os.getpid()

    assert kept == []
    with Crew(manager, 1, max_memory_per_child=200 * 1024 * 1024) as crew:
        small = [crew.submit(grow, 1).result(DEADLINE) for _ in range(3)]
        assert len(set(small)) == 1
        assert crew.submit(grow, 250).result(DEADLINE) == small[0], "looked at after the call"
        assert crew.submit(grow, 1).result(DEADLINE) != small[0]


def test_an_initializer_is_called_once_in_each_worker(manager):
    def begin(value):
        import builtins

        builtins.begun = [*getattr(builtins, "begun", []), value]

    with Crew(manager, 1, initializer=begin, initargs=("yes",)) as crew:
        for _ in range(2):
            assert crew.submit(eval, "begun").result(DEADLINE) == ["yes"]


def test_a_crew_whose_initializer_fails_says_so(manager):
    with Crew(manager, 2, initializer=divmod, initargs=(1, 0)) as crew:
        error = crew.submit(answer, 1).exception(DEADLINE)
        assert isinstance(error, PoolFailed)
        assert isinstance(error.__cause__, ZeroDivisionError)
        with pytest.raises(PoolFailed, match="initializer failed"):
            crew.submit(answer, 1)


def test_a_crew_whose_workers_cannot_begin_is_given_up(manager):
    with Crew(manager, 1, initializer=die, initargs=(signal.SIGKILL,)) as crew:
        error = crew.submit(answer, 1).exception(DEADLINE)
        assert isinstance(error, PoolFailed)
        assert "ended before they were ready" in str(error)


def test_events_of_a_call_arrive_before_its_result(manager):
    def tell(count):
        for number in range(count):
            current_task().emit("told", number)
        return count

    heard = []
    manager.server.add_listener("told", heard.append)
    with Crew(manager, 1) as crew:
        assert crew.submit(tell, 5).result(DEADLINE) == 5
        assert heard == [0, 1, 2, 3, 4]


def test_calls_from_other_threads(manager):
    with Crew(manager, 2) as crew:
        got = []

        def ask(number):
            got.append(crew.submit(answer, number).result(DEADLINE)[0])

        threads = [threading.Thread(target=ask, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        tick_until(manager, lambda: len(got) == 8)
        for thread in threads:
            thread.join(DEADLINE)
        assert sorted(got) == [2 * number for number in range(8)]


def test_leaving_a_crew_cancels_what_waits_and_stops_what_runs(manager, tmp_path):
    with Crew(manager, 1) as crew:
        running = crew.submit(hold, tmp_path / "up", tmp_path / "release")
        waiting = crew.submit(answer, 1)
        tick_until(manager, (tmp_path / "up").exists)
        worker = running.worker
    assert waiting.cancelled()
    manager.run(DEADLINE)
    assert isinstance(running.exception(0), TaskCancelled)
    with pytest.raises(IdentityRefused):
        worker.open()
    with pytest.raises(ValueError, match="closed"):
        crew.submit(answer, 1)


def test_leaving_the_manager_of_a_crew_ends_its_calls(short_path, tmp_path):
    with ProcessManager(f"unix://{short_path}/n", grace=1.0) as manager:
        crew = Crew(manager, 1)
        running = crew.submit(hold, tmp_path / "up", tmp_path / "release")
        waiting = crew.submit(answer, 1)
        tick_until(manager, (tmp_path / "up").exists)
    assert isinstance(running.exception(0), TaskCancelled)
    assert isinstance(waiting.exception(0), TaskCancelled)


def test_a_page_outlives_its_writer_and_has_an_end(tmp_path):
    page = CrashRecord.create()
    writer = CrashRecord.open(page.path)
    assert page.read() == (0, [])
    writer.record_start(7)
    assert writer.record_result(6, Kind.RETURNED, b"six")
    assert page.read() == (7, [(6, Kind.RETURNED, b"six")])
    assert not writer.record_result(7, Kind.RETURNED, bytes(1 << 20))
    writer.clear_results()
    assert page.read() == (7, [])
    assert CrashRecord.open(tmp_path / "elsewhere") is None
    for each in (page, writer):
        each.close()


def test_a_worker_without_a_page_confirms_each_result(manager, monkeypatch):
    """As one whose files are elsewhere: slower, and no less certain."""
    made = CrashRecord.create
    monkeypatch.setattr(CrashRecord, "create", lambda: _hidden(made()))
    with Crew(manager, 1) as crew:
        calls = [crew.submit(os._exit, 3) if number == 20 else crew.submit(answer, number) for number in range(40)]
        doorman.wait(calls, DEADLINE)
        assert [number for number, call in enumerate(calls) if call.exception()] == [20]


def _hidden(page):
    page.unlink()
    return page


def test_a_crew_has_a_worker(manager):
    with pytest.raises(ValueError, match="workers must be at least 1"):
        Crew(manager, 0)
