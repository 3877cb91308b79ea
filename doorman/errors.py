"""Errors: everything that Doorman raises on purpose, in one tree.

::

    DoormanError
    ├── LaunchRefused        no process can be started now; the task stays waiting
    ├── PreloadFailed        the zygote could not import what its children need
    ├── IdentityRefused      a process is not what it says it is
    └── PidfdUnavailable     this system cannot hold a process by a descriptor
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from doorman.identity import Refusal

__all__ = ["DoormanError", "IdentityRefused", "LaunchRefused", "PidfdUnavailable", "PreloadFailed"]


class DoormanError(Exception):
    """Root of all errors that Doorman raises on purpose."""


class LaunchRefused(DoormanError):
    """Raised by ``launch`` when no process can be started now; try again after the next ``poll``."""


class PreloadFailed(DoormanError):
    """Raised when the zygote cannot import what its children need; the text ends with its traceback."""


class IdentityRefused(DoormanError):
    """Raised when a process is not what it says it is; ``reason`` names the case."""

    def __init__(self, reason: Refusal, detail: str) -> None:
        super().__init__(f"{reason.value}: {detail}")
        self.reason = reason


class PidfdUnavailable(DoormanError):
    """Raised when this system cannot hold a process by a descriptor."""
