"""A process manager on Remit: the process recorded for a task is provably that task's process."""

TYPE_CHECKING = False  # Not by an import, which takes 9 ms: until a command handles Ctrl-C, it prints a traceback.
if TYPE_CHECKING:
    from typing import Any

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
    "Backoff", "Crew", "GroupManager", "Identity", "Intensity", "Journal", "Limits", "ProcessExecutor",
    "ProcessManager", "Progress", "Rule", "Rules", "State", "SynchronousManager", "Task", "WorkerPool",
    "as_completed", "current_task", "wait",
]  # fmt: skip

_NAMES = {
    "retry": "Backoff Intensity", "pools.crew": "Crew", "group_manager": "GroupManager", "identity": "Identity",
    "journal.journal": "Journal", "limits": "Limits", "pools.executor": "ProcessExecutor",
    "manager": "ProcessManager", "progress": "Progress", "rules": "Rule Rules", "states": "State",
    "synchronous_manager": "SynchronousManager", "task": "Task", "pools.broker_pool": "WorkerPool",
    "futures": "as_completed wait", "current": "current_task",
}  # fmt: skip
"""The public names of each module, imported on first use: children of the zygote pay for each loaded module."""
_WHERE = {name: f"doorman.{module}" for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> "Any":
    if name not in _WHERE:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    found = globals()[name] = getattr(__import__(_WHERE[name], fromlist=[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
