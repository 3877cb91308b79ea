"""Labour: workers in processes of their own, for the tests of the broker."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from remit import Client

_SCRIPT = """
import os, sys, time
from pathlib import Path
from remit import Worker, current_job
url, folder, capacity = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
with Worker(url, capacity=capacity) as worker:
    @worker.on("add")
    def add(a, b):
        return a + b

    @worker.on("pid")
    def pid():
        return os.getpid()

    @worker.on("note")
    def note(number):
        with (folder / "log").open("a") as file:
            file.write(f"{number}\\n")
        return number

    @worker.on("hang")
    def hang():
        attempt = current_job().attempt
        (folder / f"began-{attempt}").write_text(str(os.getpid()))
        while not (folder / "release").exists():
            time.sleep(0.005)
        return attempt, os.getpid()

    @worker.on("tell")
    def tell(count):
        for number in range(count):
            current_job().progress(number + 1, count)
        return "told"

    @worker.on("later")
    async def later(value):
        import asyncio
        await asyncio.sleep(0)
        return value

    @worker.on("size")
    def size(data):
        return len(data)

    @worker.on("spread")
    def spread(size):
        return b"x" * size

    @worker.on("divide")
    def divide(a, b):
        return a / b

    worker.run()
"""


def start_worker(url: str, folder: Path, capacity: int = 1) -> subprocess.Popen[bytes]:
    """Start a worker as a process."""
    command = [sys.executable, "-c", _SCRIPT, url, str(folder), str(capacity)]
    return subprocess.Popen(command, env={**os.environ, "PYTHONWARNINGS": "error"})


def emit_to_no_server() -> None:
    """Raise Undelivered. A function of a module that a process of any start method can import."""
    with Client("unix:///nowhere/at/all.sock", linger=0.1) as client:
        client.emit("x", 1)
