"""The executor: a pool's interface, from any thread, to proven processes."""

from __future__ import annotations

import asyncio
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from chores import answer, die
from waiting import DEADLINE, wait_until

import doorman
from doorman import ProcessExecutor
from doorman.errors import DoormanError, TaskFailed, TaskNotPicklable, WorkerDied

BOTH = pytest.mark.parametrize("reuse", [True, False], ids=["reused", "fresh"])


def hold(up, release):
    up.touch()
    while not release.exists():
        time.sleep(0.002)
    return os.getpid()


def gone(pid):
    return not Path(f"/proc/{pid}").exists()


@BOTH
def test_calls_over_every_transport(crossing_location, reuse):
    with ProcessExecutor(2, location=crossing_location, reuse=reuse) as executor:
        futures = [executor.submit(answer, number) for number in range(6)]
        assert [future.result(DEADLINE)[0] for future in futures] == [0, 2, 4, 6, 8, 10]
        assert [future.worker.pid for future in futures] == [future.result()[1] for future in futures]
        pids = {future.result()[1] for future in futures}
        assert len(pids) <= 2 if reuse else len(pids) == 6


@BOTH
def test_one_death_fails_one_call(reuse):
    with ProcessExecutor(2, reuse=reuse) as executor:
        futures = [executor.submit(die, signal.SIGKILL) if n == 5 else executor.submit(answer, n) for n in range(20)]
        errors = [number for number, future in enumerate(futures) if future.exception(DEADLINE)]
        assert errors == [5]
        assert isinstance(futures[5].exception(), WorkerDied)
        assert futures[5].exception().signal is signal.SIGKILL
        assert executor.submit(pow, 2, 5).result(DEADLINE) == 32


@BOTH
def test_what_a_call_raises_is_raised(reuse):
    with ProcessExecutor(1, reuse=reuse) as executor:
        error = executor.submit(divmod, 1, 0).exception(DEADLINE)
        assert isinstance(error, ZeroDivisionError)
        assert isinstance(error.__cause__, TaskFailed)
        assert "Traceback" in str(error.__cause__)
        assert isinstance(executor.submit(len, threading.Lock()).exception(DEADLINE), TaskNotPicklable)
        assert executor.submit(lambda: "by value").result(DEADLINE) == "by value"


class Exits:
    """A value that runs a program when it is pickled, or when it is unpickled."""

    def __init__(self, here: str = "", there: str = "") -> None:
        self.here, self.there = here, there

    def __reduce__(self):
        exec(self.here)
        return exec, (self.there,)


def end_badly(how):
    if how == "surrogates":
        raise ValueError("a\udcff\udc80b")
    if how == "long":
        raise ValueError("x" * 1_000_000)
    if how == "silent":
        raise type("Silent", (Exception,), {"__str__": lambda self: sys.exit(5)})()
    exits = Exits(**{how.partition(" ")[0]: "raise " + how.rpartition(" ")[2]})
    if "returned" in how:
        return exits
    raise ValueError(exits)


ENDS = ["surrogates", "long", "silent"] + [
    f"{place} {way} {error}"
    for place in ("here", "there")
    for way in ("returned", "raised")
    for error in ("SystemExit", "KeyboardInterrupt", "GeneratorExit", "OSError")
]


@BOTH
def test_a_call_that_ends_badly_ends_alone(reuse):
    with ProcessExecutor(1, reuse=reuse) as executor:
        calls = {how: executor.submit(end_badly, how) for how in ENDS}
        errors = {how: call.exception(DEADLINE) for how, call in calls.items()}
        assert [how for how, error in errors.items() if not isinstance(error, Exception)] == []
        assert [how for how, error in errors.items() if isinstance(error, WorkerDied)] == []
        assert executor.submit(pow, 2, 5).result(DEADLINE) == 32


@BOTH
@pytest.mark.parametrize("error", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_a_callback_that_exits_ends_neither_the_executor_nor_the_other_callbacks(reuse, error):
    def exits(*_):
        raise error("of a callback")

    called = threading.Event()
    with ProcessExecutor(1, reuse=reuse, on_progress=exits) as executor:
        call = executor.submit(lambda: doorman.current_task().progress(1))
        call.add_done_callback(exits)
        call.add_done_callback(lambda _: called.set())
        assert call.result(DEADLINE) is None
        assert called.wait(DEADLINE)
        assert executor.submit(pow, 2, 5).result(DEADLINE) == 32


@BOTH
def test_an_initializer_runs_in_each_process(reuse):
    def begin(value):
        import builtins

        builtins.begun = value

    with ProcessExecutor(2, reuse=reuse, initializer=begin, initargs=("yes",)) as executor:
        assert [executor.submit(eval, "begun").result(DEADLINE) for _ in range(4)] == ["yes"] * 4


def test_workers_start_when_needed():
    with ProcessExecutor(4) as executor:
        assert executor.workers == ()
        for number in range(5):
            executor.submit(answer, number).result(DEADLINE)
        assert len(executor.workers) == 1


def test_no_process_is_left():
    with ProcessExecutor(3) as executor:
        pids = {executor.submit(answer, number).result(DEADLINE)[1] for number in range(20)}
        zygote = executor.submit(os.getppid).result(DEADLINE)
    assert all(gone(pid) for pid in pids)
    assert gone(zygote)


def test_map_in_order_in_chunks_and_bounded():
    taken = []

    def items():
        for number in range(20):
            taken.append(number)
            yield number

    with ProcessExecutor(2) as executor:
        assert list(executor.map(pow, range(10), [2] * 10)) == [number**2 for number in range(10)]
        assert list(executor.map(pow, range(10), [2] * 10, chunksize=4)) == [number**2 for number in range(10)]
        bounded = executor.map(answer, items(), buffersize=3)
        assert len(taken) == 3
        assert next(bounded)[0] == 0
        assert len(taken) == 4
        assert [value for value, _ in bounded] == [2 * number for number in range(1, 20)]
        with pytest.raises(TimeoutError):
            list(executor.map(time.sleep, [60], timeout=0.05))
        executor.kill_workers()


@pytest.mark.parametrize("wrong", [{"chunksize": 0}, {"buffersize": 0}])
def test_a_map_that_makes_no_sense(wrong):
    with ProcessExecutor(1) as executor, pytest.raises(ValueError, match=next(iter(wrong))):
        executor.map(pow, [1], [2], **wrong)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"max_workers": 0}, "must be greater than 0"),
        ({"max_tasks_per_child": 0}, "at least 1"),
        ({"reuse": False, "max_tasks_per_child": 2}, "runs one call"),
    ],
)
def test_an_executor_that_makes_no_sense(wrong, message):
    with pytest.raises(ValueError, match=message):
        ProcessExecutor(**wrong)


def test_what_keeps_a_manager_from_being_made_is_raised_by_submit():
    with ProcessExecutor(1, location="memory://here") as executor, pytest.raises(ValueError, match="other processes"):
        executor.submit(pow, 2, 5)


def test_from_an_event_loop():
    async def main(executor):
        loop = asyncio.get_running_loop()
        return await asyncio.gather(*(loop.run_in_executor(executor, pow, 2, number) for number in range(5)))

    with ProcessExecutor(2) as executor:
        assert asyncio.run(main(executor)) == [1, 2, 4, 8, 16]


def test_a_callback_may_submit():
    with ProcessExecutor(1) as executor:
        second = []
        first = executor.submit(pow, 2, 5)
        first.add_done_callback(lambda future: second.append(executor.submit(pow, future.result(), 2)))
        wait_until(lambda: second and second[0].done())
        assert second[0].result() == 1024


@pytest.mark.parametrize("begun_first", [False, True])
def test_a_shutdown_cancels_what_has_not_begun(tmp_path, begun_first):
    """Also what a worker had been given already, since the calls before were short."""
    executor = ProcessExecutor(1)
    for number in range(50):
        executor.submit(answer, number).result(DEADLINE)
    running = executor.submit(hold, tmp_path / "up", tmp_path / "release")
    if begun_first:
        wait_until((tmp_path / "up").exists)
    rest = [executor.submit(answer, number) for number in range(50)]
    wait_until((tmp_path / "up").exists)
    executor.shutdown(wait=False, cancel_futures=True)
    wait_until(lambda: all(future.cancelled() for future in rest))
    (tmp_path / "release").touch()
    executor.shutdown()
    assert running.result() == running.worker.pid


@BOTH
def test_workers_can_be_stopped(tmp_path, reuse):
    executor = ProcessExecutor(1, reuse=reuse)
    running = executor.submit(hold, tmp_path / "up", tmp_path / "release")
    waiting = executor.submit(answer, 1)
    wait_until((tmp_path / "up").exists)
    executor.kill_workers()
    assert isinstance(running.exception(DEADLINE), DoormanError)
    wait_until(waiting.cancelled)
    executor.shutdown()
    with pytest.raises(RuntimeError, match="after shutdown"):
        executor.submit(answer, 1)


def test_an_executor_that_is_forgotten_ends():
    executor = ProcessExecutor(2)
    before = set(threading.enumerate())
    results = executor.map(answer, range(10))
    (thread,) = {thread for thread in threading.enumerate() if thread.name == "doorman-executor"} - before
    del executor
    gc.collect()
    assert [value for value, _ in results] == [2 * number for number in range(10)]
    thread.join(DEADLINE)
    assert not thread.is_alive()


def test_a_fork_of_the_owner_changes_nothing(tmp_path):
    with ProcessExecutor(1) as executor:
        running = executor.submit(hold, tmp_path / "up", tmp_path / "release")
        wait_until((tmp_path / "up").exists)
        try:
            assert "belongs to the parent" in _error_in_a_fork(executor)
        finally:  # Otherwise leaving the executor's block would wait for the call that is held.
            (tmp_path / "release").touch()
        assert running.result(DEADLINE) == running.worker.pid


def _error_in_a_fork(executor):
    """Return the error of a submission in a forked child, which then shuts down its copy of the executor."""
    reader, writer = os.pipe()
    child = _forked()
    if child == 0:
        failed = True
        try:
            executor.submit(answer, 1)
        except RuntimeError as error:
            os.write(writer, str(error).encode())
            executor.shutdown()
            failed = False
        finally:
            os._exit(failed)
    os.close(writer)
    _, status = os.waitpid(child, 0)
    assert status == 0
    with os.fdopen(reader) as said:
        return said.read()


def _forked():
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # That is what is tested.
        return os.fork()


SCRIPT = """
import atexit, sys, time
def late():
    try:
        executor.submit(pow, 2, 5)
    except RuntimeError as error:
        print(error)
atexit.register(late)
import doorman
from doorman import ProcessExecutor
def tell(seconds, word):
    time.sleep(seconds)
    print(word, flush=True)
executor = ProcessExecutor(2, exit_timeout={timeout})
executor.submit(tell, {seconds}, "apple")
{more}
"""


def run(seconds, timeout, more=""):
    script = SCRIPT.format(seconds=seconds, timeout=timeout, more=more)
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=DEADLINE, check=True)


def test_the_interpreters_exit_waits_for_what_was_submitted():
    ended = run(0.3, DEADLINE)
    assert ended.stdout.splitlines() == ["apple", "cannot schedule new futures after interpreter shutdown"]
    assert ended.stderr == ""


def test_the_interpreters_exit_waits_also_after_a_shutdown_that_did_not():
    ended = run(0.3, DEADLINE, "executor.shutdown(wait=False)")
    assert ended.stdout.splitlines()[0] == "apple"


def test_the_interpreters_exit_does_not_wait_for_ever():
    ended = run(1000, 0.2)
    assert "apple" not in ended.stdout
    assert "1 calls were unfinished 0.2 s after the interpreter began to exit" in ended.stderr
