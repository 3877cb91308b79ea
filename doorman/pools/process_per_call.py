"""A pool that runs each call in a new process."""

from __future__ import annotations

from typing import Any

from doorman._worker.pickling import run_initializer, unpickle
from doorman.pools.call import Call, CallPool
from doorman.task import Task


class ProcessPerCall(CallPool):
    """A pool of up to ``size`` processes at a time, a new one for each call."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._running: dict[Task, Call] = {}
        self._starting: list[Call] = []  # The call that an interrupt has left without a task.

    def _running_calls(self) -> int:
        return len(self._running)

    def _tasks(self) -> list[Task]:
        return list(self._running)

    def _assign_calls(self) -> None:
        while self._starting or len(self._running) < self.size:
            if not self._starting:
                self._waiting.pop(1, self._starting)
                if not self._starting:
                    return
            self._start(self._starting[0])
            self._starting.clear()

    def _start(self, call: Call) -> None:
        task = Task(
            _run_call,
            self._initializer,
            call.data,
            name=call.name,
            handler=call.name,
            limits=self._limits,
            on_progress=lambda _, progress: call.set_progress(progress, self._on_progress),
        )
        task._script = call.script or self._script
        self._running[task] = call
        task._retrieved = True  # The call has the error.
        task._on_done(self._on_task_done)
        try:
            self.manager.add_task(task)
        except Exception as error:
            del self._running[task]
            call.set_exception(error)
            raise
        except BaseException:
            if task._manager is None:  # Not added: the next dispatch makes another task.
                self._running.pop(task, None)
                self._waiting.requeue([call])
            self._starting.clear()
            raise

    def _on_task_done(self, task: Task) -> None:
        call = self._running.get(task)
        if call is not None:
            call.worker = task.identity
            call.finish(*task._outcome)
        self._running.pop(task, None)  # Last: after an interrupt above, the manager calls this again.
        self._on_process_done()


def _run_call(initializer: bytes, data: bytes) -> Any:
    """Run one call, in its process."""
    run_initializer(initializer)
    fn, args, kwargs = unpickle(data)
    return fn(*args, **kwargs)
