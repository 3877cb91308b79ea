"""Log records at a bounded rate, so that repeated failures cannot fill the disk."""

from __future__ import annotations

import logging
import threading
import time
from typing import Any, Final

LOG_INTERVAL_S: Final = 10.0
"""Seconds between two records with the same key."""
KEYS_KEPT: Final = 256

logger = logging.getLogger("remit")


class LimitedLog:
    """Logs one record per key and interval. The next one states how many were left out."""

    def __init__(self, interval: float = LOG_INTERVAL_S) -> None:
        self._interval = interval
        self._lock = threading.RLock()  # Reentrant: a signal handler may log while this thread does.
        self._last: dict[str, tuple[float, int]] = {}

    def warning(self, key: str, message: str, *args: Any, exc_info: BaseException | None = None) -> None:
        """Log a warning, unless one with this key was logged in the last interval."""
        now = time.monotonic()
        with self._lock:
            logged_at, omitted = self._last.pop(key, (-self._interval, 0))
            due = now - logged_at >= self._interval
            if len(self._last) >= KEYS_KEPT:  # A dict keeps the order of insertion: the oldest key comes first.
                del self._last[next(iter(self._last))]
            self._last[key] = (now, 0) if due else (logged_at, omitted + 1)
        if due:
            more = f" ({omitted} similar records omitted)" if omitted else ""
            logger.warning(f"{message}{more}", *args, exc_info=exc_info)
