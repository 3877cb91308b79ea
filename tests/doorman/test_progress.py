"""Progress: what a task says of how far it has come, believed only from its own process."""

from __future__ import annotations

import os
import time
from fractions import Fraction
from itertools import pairwise

import pytest
from managing import overheard, say, tick_until
from waiting import DEADLINE, wait_until

from doorman import ProcessManager, Progress, State, SynchronousManager, Task, current_task
from doorman._worker.signed_channel import PROGRESS, TASK_REPORTS, SignedSender
from doorman.errors import NotInTask
from doorman.identity import Credential
from doorman.progress import REPORT_INTERVAL_S, ProgressReporter, decode_progress, encode_progress, make_progress


def test_a_task_tells_how_far_it_has_come_over_every_transport(crossing_location):
    def work() -> None:
        for number in range(1, 4):
            current_task().progress(number, 3, f"step {number}")

    heard: list[Progress] = []
    began = time.time()
    with ProcessManager(crossing_location, on_progress=lambda task, progress: heard.append(progress)) as manager:
        task = manager.add_task(Task(work, on_progress=lambda task, progress: heard.append(task.progress)))
        assert task.progress is None
        task.result(DEADLINE)
    last = task.progress
    assert (last.done, last.total, last.note, last.fraction) == (3, 3, "step 3", 1.0)
    assert began <= last.at <= time.time()
    assert heard[0].done == 1
    assert heard[-2:] == [last, last]
    assert all(before.done <= after.done for before, after in pairwise(heard))


def test_of_a_flood_only_some_travel_and_the_last_one_always(short_path):
    def flood(reports: int) -> float:
        began = time.monotonic()
        for number in range(reports):
            current_task().progress(number, reports)
        return time.monotonic() - began

    heard: list[float] = []
    with ProcessManager(f"unix://{short_path}/m", on_progress=lambda _, now: heard.append(now.done)) as manager:
        seconds = manager.add_task(Task(flood, 50_000)).result(DEADLINE)
    assert (heard[0], heard[-1]) == (0, 49_999)
    assert heard == sorted(heard)
    assert len(heard) <= seconds / REPORT_INTERVAL_S + 2


def test_what_was_held_back_comes_though_the_task_says_nothing_more(short_path):
    def say_and_stay() -> None:
        current_task().progress(1)
        current_task().progress(2)
        time.sleep(600)

    with ProcessManager(f"unix://{short_path}/m", grace=0.1) as manager:
        task = manager.add_task(Task(say_and_stay))
        tick_until(manager, lambda: task.progress is not None and task.progress.done == 2)
        assert task.state is State.RUNNING


def test_a_report_lets_the_first_through_and_of_the_others_the_last():
    sent: list[Progress] = []
    reporter = ProgressReporter(sent.append)
    for number in range(100):
        reporter.report(Progress(number))
    assert sent[0] == Progress(0)
    wait_until(lambda: sent[-1] == Progress(99))
    reporter.report(Progress(100))
    reporter.flush()
    reporter.flush()
    assert sent[-1] == Progress(100)
    assert sent.count(Progress(100)) == 1


def test_a_listener_that_raises_is_reported_and_stops_nobody(short_path, caplog):
    def fail(task: Task, progress: Progress) -> None:
        raise ValueError("cannot bear it")

    heard: list[Progress] = []
    with ProcessManager(f"unix://{short_path}/m", on_progress=lambda _, now: heard.append(now)) as manager:
        task = manager.add_task(Task(lambda: current_task().progress(1), on_progress=fail))
        task.result(DEADLINE)
    assert heard == [task.progress]
    assert [str(record.exc_info[1]) for record in caplog.records] == ["cannot bear it"]


def test_the_progress_of_an_earlier_attempt_is_forgotten(short_path):
    def work() -> None:
        if current_task().attempt == 1:
            current_task().progress(1)
            raise ValueError

    with ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task(work, retries=1))
        task.result(DEADLINE)
    assert task.progress is None


def test_only_the_process_itself_is_believed(short_path):
    def report_and_stay() -> None:
        current_task().progress(1)
        time.sleep(600)

    with ProcessManager(f"unix://{short_path}/m", grace=0.1) as manager:
        hellos = overheard(manager)
        reports: list[tuple[object, ...]] = []
        manager.server.add_listener("doorman.report", lambda *words: reports.append(words))
        task = manager.add_task(Task(report_and_stay))
        tick_until(manager, lambda: task.progress)
        known = task.progress
        attempt = hellos[0]["attempt"]
        sent: list[tuple[int, bytes, bytes]] = []
        forger = SignedSender(Credential(attempt, task=task.id), TASK_REPORTS, lambda *parts: sent.append(parts))
        for _ in range(2):
            forger.send([(0, PROGRESS, encode_progress(Progress(99)))])
        lies = [(attempt,), (attempt, 1, 2), (attempt, 2, b"", b""), (attempt, "2", None, 0), (), reports[0]]
        say(manager, (attempt, *sent[1]), ("another", *sent[1]), *lies, name="doorman.report")
        assert task.progress is known
        assert manager.refused == {
            "report not signed by the attempt's process": 6,
            "report of an unknown attempt": 2,
        }


def test_a_fork_of_the_task_has_no_progress_of_its_own(short_path):
    def work() -> int:
        child = os.fork()
        if not child:
            try:
                current_task().progress(1)
            except NotInTask:
                os._exit(7)
            os._exit(0)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    with ProcessManager(f"unix://{short_path}/m") as manager:
        task = manager.add_task(Task(work))
        assert task.result(DEADLINE) == 7
    assert task.progress is None


def test_a_synchronous_manager_tells_it_too():
    heard: list[Progress] = []
    with SynchronousManager(on_progress=lambda _, now: heard.append(now)) as manager:
        task = manager.add_task(Task(lambda: current_task().progress(1, 2)))
        task.result(DEADLINE)
    assert heard == [task.progress]
    assert task.progress.fraction == 0.5


@pytest.mark.parametrize("done", ["1", None, True, object()])
def test_progress_is_a_number(done):
    with pytest.raises(TypeError, match="done is a number"):
        make_progress(done, None, "")


@pytest.mark.parametrize(("done", "travels"), [(1, 1), (0.5, 0.5), (Fraction(1, 2), 0.5), (1 << 80, float(1 << 80))])
def test_any_number_will_do(done, travels):
    progress = decode_progress(encode_progress(make_progress(done, 2, "\ud800" * 5000)))
    assert (progress.done, progress.total, progress.note) == (travels, 2, "?" * 1000)


@pytest.mark.parametrize(
    ("progress", "fraction"),
    [
        (Progress(1), None),
        (Progress(1, 0), None),
        (Progress(1, 4), 0.25),
        (Progress(9, 4), 1.0),
        (Progress(-1, 4), 0.0),
    ],
)
def test_a_fraction_lies_between_nothing_and_all(progress, fraction):
    assert progress.fraction == fraction
