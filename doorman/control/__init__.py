"""Access to running managers: list the managers of this user, query their tasks, stop a task or a manager."""

from doorman.control.client import Remote, find
from doorman.control.registry import Registration, entries
from doorman.control.server import Control

__all__ = ["Control", "Registration", "Remote", "entries", "find"]
