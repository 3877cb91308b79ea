"""What a call of a worker that is used again has in common with a task: its progress, and limits of its own."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time

import pytest
from chores import answer
from internals import server_io
from managing import tick_until
from waiting import DEADLINE

import doorman
from doorman import Crew, Limits, ProcessExecutor, ProcessManager, current_task
from doorman.errors import LimitNotApplied, NotInTask, PoolFailed, TaskCancelled, WorkerDied
from doorman.limits import CPU_LIMIT_CLOCK
from doorman.pools.call import Call, PendingCalls

MEMORY = 512 << 20


@pytest.fixture
def manager(short_path):
    with ProcessManager(f"unix://{short_path}/m", grace=1.0) as manager:
        yield manager


def step(total, release=None):
    for number in range(1, total + 1):
        current_task().progress(number, total, note=f"step {number}")
    while release is not None and not release.exists():
        time.sleep(0.002)
    return os.getpid()


def grow(size):
    return len(bytearray(size))


def grow_and_wait(size, up, release):
    kept = []
    with contextlib.suppress(MemoryError):
        while len(kept) < size:
            kept.append(bytearray(1 << 16))
    up.touch()
    while not release.exists():
        time.sleep(0.002)
    return len(kept)


def burn():
    while True:
        pass


def test_the_progress_of_a_call_is_its_futures(crossing_location):
    """The last report always travels, and before the result."""
    heard = []
    with (
        ProcessManager(crossing_location) as manager,
        Crew(manager, 2, on_progress=lambda call, progress: heard.append((call, progress.done))) as crew,
    ):
        calls = [crew.submit(step, total) for total in (3, 40, 5)]
        silent = crew.submit(answer, 1)
        doorman.wait([*calls, silent], DEADLINE)
        assert [call.progress.done for call in calls] == [3, 40, 5]
        assert (calls[1].progress.fraction, calls[1].progress.note) == (1.0, "step 40")
        assert [[done for call, done in heard if call is each][-1] for each in calls] == [3, 40, 5]
        assert silent.progress is None


def test_progress_is_heard_while_the_call_runs(manager, tmp_path):
    with Crew(manager, 1) as crew:
        call = crew.submit(step, 7, tmp_path / "release")
        tick_until(manager, lambda: call.progress is not None and call.progress.done == 7)
        assert not call.done()
        (tmp_path / "release").touch()
        assert call.result(DEADLINE)


def test_a_listener_of_progress_that_raises_stops_nothing(manager, caplog):
    def fails(call, progress):
        raise ValueError("not my day")

    with Crew(manager, 1, on_progress=fails) as crew:
        call = crew.submit(step, 2)
        assert call.result(DEADLINE)
        assert call.progress.done == 2
    assert "not my day" in caplog.text


def return_twice():
    if (child := os.fork()) == 0:
        return "the fork"
    os.waitpid(child, 0)
    return "the worker"


def test_a_fork_of_a_worker_answers_no_call(manager):
    with Crew(manager, 1) as crew:
        for _ in range(3):
            assert crew.submit(return_twice).result(DEADLINE) == "the worker"
            assert crew.submit(answer, 1).result(DEADLINE)[0] == 2


def test_a_fork_of_a_worker_has_no_progress(manager):
    def fork():
        reader, writer = os.pipe()
        if not os.fork():
            try:
                current_task().progress(1)
            except NotInTask:
                os.write(writer, b"refused")
            os._exit(0)
        os.wait()
        return os.read(reader, 100)

    with Crew(manager, 1) as crew:
        assert crew.submit(fork).result(DEADLINE) == b"refused"


@pytest.mark.parametrize("reuse", [True, False])
def test_an_executors_calls_have_progress_and_limits(reuse):
    heard = []
    limits = Limits(memory=MEMORY)
    with ProcessExecutor(
        1, reuse=reuse, limits=limits, on_progress=lambda call, progress: heard.append(call)
    ) as executor:
        call = executor.submit(step, 3)
        assert call.result(DEADLINE)
        assert call.progress.done == 3
        assert set(heard) == {call}
        assert isinstance(executor.submit(grow, 2 * MEMORY).exception(DEADLINE), MemoryError)


@pytest.mark.parametrize("error", [None, PoolFailed("broken")])
def test_a_call_that_comes_while_another_thread_closes_is_settled(manager, error):
    backlog, call = PendingCalls(), Call(manager)
    if error is None:
        backlog.close()
    else:
        backlog.fail(error)
    backlog.add(call)
    assert call.cancelled() if error is None else call.exception(0) is error
    assert not len(backlog)


def test_one_call_at_a_time_wakes_the_manager_once(manager, monkeypatch):
    """The worker's acknowledgement travels with the result; no other thread is called to send the call."""
    waits, called = [], []
    wait, request = manager.server.wait, server_io(manager.server).request_send
    with Crew(manager, 1) as crew:
        crew.submit(answer, 0).result(DEADLINE)
        monkeypatch.setattr(manager.server, "wait", lambda *args: (waits.append(1), wait(*args)))
        monkeypatch.setattr(server_io(manager.server), "request_send", lambda: (called.append(1), request()))
        for number in range(200):
            assert crew.submit(answer, number).result(DEADLINE)[0] == 2 * number
        assert len(waits) < 300
        assert len(called) < 20


def test_more_memory_than_a_call_may_have_costs_that_call_and_not_its_worker(manager):
    with Crew(manager, 1, limits=Limits(memory=MEMORY)) as crew:
        calls = [crew.submit(grow, size) for size in (1, 2 * MEMORY, 2, 2 * MEMORY, 3)]
        doorman.wait(calls, DEADLINE)
        assert [type(call.exception()) for call in calls] == [type(None), MemoryError] * 2 + [type(None)]
        assert {call.worker.pid for call in calls} == {crew.workers[0].pid}


def test_a_worker_whose_call_has_no_memory_left_still_speaks(manager, tmp_path):
    """It gives back what waits behind that call, and goes on."""
    with Crew(manager, 1, limits=Limits(memory=MEMORY)) as crew:
        for _ in range(100):
            crew.submit(answer, 1)
        crew.run(DEADLINE)
        held = crew.submit(grow_and_wait, MEMORY >> 16, tmp_path / "up", tmp_path / "release")
        behind = [crew.submit(answer, number) for number in range(50)]
        tick_until(manager, (tmp_path / "up").exists)
        tick_until(manager, lambda: not any(call.running() for call in behind))
        (tmp_path / "release").touch()
        assert 1 < held.result(DEADLINE) < MEMORY >> 16
        doorman.wait(behind, DEADLINE)
        assert [call.result()[0] for call in behind] == [2 * number for number in range(50)]
        assert {call.worker.pid for call in behind} == {held.worker.pid}


def test_seconds_of_processor_time_are_those_of_one_call(manager):
    """A worker does not die of what the calls before have used; one that does costs the call that it was running."""
    with Crew(manager, 1, limits=Limits(cpu=1, core=0)) as crew:
        used = 0.0
        for _ in range(4):
            used = crew.submit(spend, 0.6).result(DEADLINE)
        assert used > 2.0
        burning, next_one = crew.submit(burn), crew.submit(answer, 1)
        error = burning.exception(DEADLINE)
        assert isinstance(error, WorkerDied)
        assert error.signal == signal.SIGXCPU
        assert next_one.result(DEADLINE)[0] == 2


def spend(seconds):
    until = time.clock_gettime(CPU_LIMIT_CLOCK) + seconds
    while time.clock_gettime(CPU_LIMIT_CLOCK) < until:
        pass
    return time.clock_gettime(CPU_LIMIT_CLOCK)


def test_the_other_limits_are_those_of_the_worker(manager):
    with Crew(manager, 1, limits=Limits(umask=0o027, nice=5)) as crew:
        assert crew.submit(os.umask, 0).result(DEADLINE) == 0o027
        assert crew.submit(os.nice, 0).result(DEADLINE) == 5


def test_limits_that_no_worker_can_have_are_told(manager):
    with Crew(manager, 1, limits=Limits(memory=1)) as crew:
        error = crew.submit(answer, 1).exception(DEADLINE)
        assert isinstance(error, PoolFailed)
        assert isinstance(error.__cause__, LimitNotApplied)
    for make in (lambda: Crew(manager, 1, limits=5), lambda: ProcessExecutor(1, limits=5)):
        with pytest.raises(TypeError, match="limits is a Limits"):
            make()


def test_a_crew_whose_manager_is_closed_takes_no_call(manager):
    crew = Crew(manager, 1)
    manager.close()
    with pytest.raises(ValueError, match="closed"):
        crew.submit(answer, 1)


def test_a_crew_is_closed_where_a_loop_ticks_its_manager(short_path, tmp_path):
    """It does not tick it itself: what waits is cancelled at once, the workers end while the loop goes on."""

    async def main():
        async with ProcessManager(f"unix://{short_path}/m", grace=1.0) as manager:
            with Crew(manager, 2) as crew:
                first = crew.submit(answer, 1)
                assert (await asyncio.wait_for(asyncio.wrap_future(first), DEADLINE))[0] == 2
                held = [crew.submit(step, 1, tmp_path / "release") for _ in range(2)]
                while not all(call.progress for call in held):
                    await asyncio.sleep(0.002)
                waiting = crew.submit(answer, 2)
                workers = crew.workers
            assert waiting.cancelled()
            with pytest.raises(ValueError, match="closed"):
                crew.submit(answer, 3)
            await asyncio.wait_for(manager.run(), DEADLINE)
            assert [type(call.exception(0)) for call in held] == [TaskCancelled] * 2
            assert not crew.busy
            assert len(workers) == 2
            assert manager.running == ()

    asyncio.run(main())
