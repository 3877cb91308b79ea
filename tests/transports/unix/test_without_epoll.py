"""The transport works where `select` has no epoll: gevent removes it, and other systems have none."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

SCRIPT = """
import select, sys, threading
del select.epoll
from remit import Client, Server
server = Server(sys.argv[1])
server.add_listener("add", lambda a, b: a + b)
threading.Thread(target=server.run, daemon=True).start()
with Client(server.location) as client:
    print(client.request("add", 2, 3, timeout=30))
"""


def test_a_request_is_answered_without_epoll(short_path: Path) -> None:
    command = [sys.executable, "-c", SCRIPT, f"unix://{short_path}/e.sock"]
    assert subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout == "5\n"
