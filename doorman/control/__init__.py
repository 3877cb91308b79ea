"""Control: how one process finds another's manager, asks it about its tasks, and has it stop one."""

from doorman.control.control import Control
from doorman.control.registry import Registration, entries
from doorman.control.remote import Remote, find

__all__ = ["Control", "Registration", "Remote", "entries", "find"]
