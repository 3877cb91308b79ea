"""Log records at a bounded rate, so that repeated failures cannot fill the disk."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from typing import Any, Final

LOG_INTERVAL_S: Final = 10.0
"""Seconds between two records with the same key."""
KEYS_KEPT: Final = 256

logger = logging.getLogger("remit")


class LimitedLog:
    """Logs one record per key and interval. The next one states how many were left out."""

    def __init__(self) -> None:
        # No lock: an interrupt would leave it locked. At worst two threads log a record each.
        self._last: OrderedDict[str, tuple[float, int]] = OrderedDict()

    def warning(self, key: str, message: str, *args: Any, exc_info: BaseException | None = None) -> None:
        """Log a warning, unless one with this key was logged in the last interval."""
        now = time.monotonic()
        logged_at, omitted = self._last.pop(key, (-LOG_INTERVAL_S, 0))
        due = now - logged_at >= LOG_INTERVAL_S
        if len(self._last) >= KEYS_KEPT:
            self._last.popitem(last=False)
        self._last[key] = (now, 0) if due else (logged_at, omitted + 1)
        if due:
            more = f" ({omitted} similar records omitted)" if omitted else ""
            logger.warning(f"{message}{more}", *args, exc_info=exc_info)
