"""The executor passes CPython's own cases for executors, where the interpreter ships them."""

from __future__ import annotations

import time
import unittest
from concurrent import futures
from typing import Any

import pytest
from chores import die
from waiting import DEADLINE

from doorman import ProcessExecutor
from doorman.errors import TaskFailed, TaskNotPicklable, WorkerDied

cases = pytest.importorskip(
    "test.test_concurrent_futures.executor",
    reason="this interpreter ships no test.test_concurrent_futures (CPython before 3.12, or built without its tests)",
)
from test.test_concurrent_futures import (  # noqa: E402
    test_as_completed,
    test_deadlock,
    test_init,
    test_process_pool,
    test_shutdown,
    test_wait,
)

NOT_APPLICABLE = {
    "test_killed_child": "a dead worker does not break the executor: told by test_one_death_fails_one_call",
    "test_traceback": "the cause is a TaskFailed, no _RemoteTraceback: told by test_what_a_call_raises_is_raised",
    "test_ressources_gced_in_workers": "sends a proxy of multiprocessing's, which needs its parent's secret",
    "test_saturation": "sends a semaphore of multiprocessing's, and counts `_processes`",
    "test_idle_process_reuse_one": "counts `_processes`: told by test_workers_start_when_needed",
    "test_idle_process_reuse_multiple": "counts `_processes`: told by test_workers_start_when_needed",
    "test_max_tasks_per_child": "gives an mp_context: told by test_a_worker_is_replaced_after_its_calls",
    "test_max_tasks_per_child_defaults_to_spawn_context": "there is no mp_context",
    "test_max_tasks_early_shutdown": "gives an mp_context: told by test_a_worker_is_replaced_after_its_calls",
    "test_python_finalization_error": "mocks the threads of ProcessPoolExecutor",
    "test_force_shutdown_workers": "looks at `_processes`: told by test_workers_can_be_stopped",
    "test_force_shutdown_workers_invalid_op": "looks at an enumeration of ProcessPoolExecutor's own",
    "test_terminate_workers": "looks at `_processes`: told by test_workers_can_be_stopped",
    "test_kill_workers": "looks at `_processes`: told by test_workers_can_be_stopped",
    "test_interpreter_shutdown": "imports the executor by its name from concurrent.futures: told by test_executor_exit",
    "test_submit_after_interpreter_shutdown": "the same: told by test_executor_exit",
    "test_hang_gh83386": "the same: told by test_executor_exit",
    "test_processes_terminate": "looks at `_processes`: told by test_no_process_is_left",
    "test_context_manager_shutdown": "makes a ProcessPoolExecutor: told by test_no_process_is_left",
    "test_del_shutdown": "makes a ProcessPoolExecutor: told by test_an_executor_that_is_forgotten_ends",
    "test_shutdown_no_wait": "makes a ProcessPoolExecutor: told by test_an_executor_that_is_forgotten_ends",
}
"""CPython's cases that look into ProcessPoolExecutor, or test what we do otherwise, and why."""


class Mixin(unittest.TestCase):
    """What CPython's cases expect of a pool."""

    executor_type = ProcessExecutor
    worker_count = 5
    executor_kwargs: dict[str, Any] = {}

    def setUp(self) -> None:
        reason = NOT_APPLICABLE.get(self._testMethodName)
        if reason:
            self.skipTest(reason)
        self.executor = ProcessExecutor(self.worker_count, **self.executor_kwargs)

    def tearDown(self) -> None:
        self.executor.shutdown(wait=True)


class TestExecutor(Mixin, test_process_pool.ProcessPoolExecutorTest):
    pass


class TestShutdown(Mixin, test_shutdown.ProcessPoolShutdownTest):
    def setUp(self) -> None:
        super().setUp()
        if self._testMethodName == "test_cancel_futures":
            self.executor.submit(int).result()  # A call is cancelled unless there is a worker to begin it.


class TestWait(Mixin, test_wait.WaitTests):
    pass


class TestAsCompleted(Mixin, test_as_completed.AsCompletedTests):
    pass


class TestInitializer(Mixin):
    worker_count = 2
    executor_kwargs = {"initializer": test_init.init, "initargs": ("initialized",)}
    test_initializer = test_init.InitializerMixin.test_initializer


class TestFailingInitializer(Mixin):
    """The case of CPython without what it looks for in the log."""

    worker_count = 2
    executor_kwargs = {"initializer": test_init.init_fail}

    def test_initializer(self) -> None:
        future = self.executor.submit(test_init.get_init_status)
        with pytest.raises(futures.BrokenExecutor, match="error in initializer"):
            future.result()
        with pytest.raises(futures.BrokenExecutor, match="error in initializer"):
            self.executor.submit(test_init.get_init_status)


# CPython's own functions, under the names that it has for them: its cases run as they are.
crash, exit_process = test_deadlock._crash, test_deadlock._exit
raise_error, return_instance = test_deadlock._raise_error, test_deadlock._return_instance


class TestCrashes(Mixin):
    """The cases of CPython's test_deadlock: what ends a worker, or fails to be pickled, at every step."""

    worker_count = 2
    CRASHES = {
        "error at task pickle": (TaskNotPicklable, id, test_deadlock.ErrorAtPickle),
        "error at task unpickle": (TaskFailed, id, test_deadlock.ErrorAtUnpickle),
        "exit at task unpickle": (TaskFailed, id, test_deadlock.ExitAtUnpickle),
        "crash at task unpickle": (WorkerDied, id, test_deadlock.CrashAtUnpickle),
        "crash in the call": (WorkerDied, crash, None),
        "exit in the call": (TaskFailed, exit_process, None),
        "error in the call": (RuntimeError, raise_error, RuntimeError),
        "crash at result pickle": (WorkerDied, return_instance, test_deadlock.CrashAtPickle),
        "exit at result pickle": (TypeError, return_instance, test_deadlock.ExitAtPickle),
        "error at result pickle": (TypeError, return_instance, test_deadlock.ErrorAtPickle),
        "error at result unpickle": (TaskFailed, return_instance, test_deadlock.ErrorAtUnpickle),
        "exit at result unpickle": (TaskFailed, return_instance, test_deadlock.ExitAtUnpickle),
    }

    def test_each_fails_its_own_call_and_no_other(self) -> None:
        for name, (error, function, argument) in self.CRASHES.items():
            with self.subTest(name):
                given = () if argument is None else (argument,)
                if name.startswith(("error at task", "exit at task", "crash at task")):
                    given = (argument(),)
                future = self.executor.submit(function, *given)
                after = self.executor.submit(pow, 2, 5)
                raised = future.exception(DEADLINE)
                assert isinstance(raised, error) or isinstance(raised.__cause__, error), raised
                assert after.result(DEADLINE) == 32

    def test_crash_with_much_under_way(self) -> None:
        data = "a" * test_deadlock.support.PIPE_MAX_SIZE
        crashing = self.executor.submit(die, 9)
        waiting = [self.executor.submit(len, data) for _ in range(10)]
        assert isinstance(crashing.exception(), WorkerDied)
        assert [each.result() for each in waiting] == [len(data)] * 10

    def test_shutdown_with_a_crash_under_way(self) -> None:
        self.executor.submit(time.sleep, 0.1)
        crashing = self.executor.submit(crash)
        self.executor.shutdown(wait=True)
        assert isinstance(crashing.exception(), WorkerDied)


def test_the_cases_that_do_not_apply_are_cases() -> None:
    known = set(dir(test_process_pool.ProcessPoolExecutorTest)) | set(dir(test_shutdown.ProcessPoolShutdownTest))
    assert "test_submit" in known
    newer = {
        "test_force_shutdown_workers",
        "test_force_shutdown_workers_invalid_op",
        "test_terminate_workers",
        "test_kill_workers",
    }
    assert NOT_APPLICABLE.keys() - known <= newer
