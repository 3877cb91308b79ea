"""A process manager on Remit: the process recorded for a task is provably that task's process."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from doorman.current import current_task
    from doorman.futures import as_completed, wait
    from doorman.group_manager import GroupManager
    from doorman.identity import Identity
    from doorman.journal.journal import Journal
    from doorman.limits import Limits
    from doorman.manager import ProcessManager
    from doorman.pools.broker_pool import WorkerPool
    from doorman.pools.crew import Crew
    from doorman.pools.executor import ProcessExecutor
    from doorman.progress import Progress
    from doorman.retry import Backoff, Intensity
    from doorman.rules import Rule, Rules
    from doorman.states import State
    from doorman.synchronous_manager import SynchronousManager
    from doorman.task import Task

__all__ = [
    "Backoff",
    "Crew",
    "GroupManager",
    "Identity",
    "Intensity",
    "Journal",
    "Limits",
    "ProcessExecutor",
    "ProcessManager",
    "Progress",
    "Rule",
    "Rules",
    "State",
    "SynchronousManager",
    "Task",
    "WorkerPool",
    "as_completed",
    "current_task",
    "wait",
]

_WHERE = {
    "Backoff": "doorman.retry",
    "Crew": "doorman.pools.crew",
    "GroupManager": "doorman.group_manager",
    "Identity": "doorman.identity",
    "Intensity": "doorman.retry",
    "Journal": "doorman.journal.journal",
    "Limits": "doorman.limits",
    "ProcessExecutor": "doorman.pools.executor",
    "ProcessManager": "doorman.manager",
    "Progress": "doorman.progress",
    "Rule": "doorman.rules",
    "Rules": "doorman.rules",
    "State": "doorman.states",
    "SynchronousManager": "doorman.synchronous_manager",
    "Task": "doorman.task",
    "WorkerPool": "doorman.pools.broker_pool",
    "as_completed": "doorman.futures",
    "current_task": "doorman.current",
    "wait": "doorman.futures",
}
"""The module of each public name, imported on first use: children of the zygote pay for each module it has loaded."""


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(import_module(_WHERE[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
