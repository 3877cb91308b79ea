"""Control: how one process finds another's manager, asks it about its tasks, and has it stop one."""

from doorman.control.client import Remote, find
from doorman.control.registry import Registration, entries
from doorman.control.server import Control

__all__ = ["Control", "Registration", "Remote", "entries", "find"]
