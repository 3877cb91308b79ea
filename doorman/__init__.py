"""Doorman: a process manager on Remit, in which the process recorded for a task is provably that task's process."""

from doorman.current import current_task
from doorman.futures import as_completed, wait
from doorman.groups import GroupManager
from doorman.identity import Identity
from doorman.journal.journal import Journal
from doorman.manager import ProcessManager
from doorman.policy.limits import Limits
from doorman.policy.retry import Backoff, Intensity
from doorman.pools.crew import Crew
from doorman.pools.executor import ProcessExecutor
from doorman.pools.pool import WorkerPool
from doorman.progress import Progress
from doorman.rules import Rule, Rules
from doorman.states import State
from doorman.synchronous import SynchronousManager
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
