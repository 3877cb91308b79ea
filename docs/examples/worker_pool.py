"""Multithreaded server of the ZeroMQ guide with processes: five workers reply, over any transport.

Run it as ``python worker_pool.py [LOCATION]``. One worker is killed during its work; no request is lost.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

from doorman import WorkerPool
from remit import Client


def greet(name: str) -> tuple[str, int]:
    """Reply to one request after some milliseconds."""
    time.sleep(0.01)
    return f"hello {name}", os.getpid()


def main() -> None:
    """Send two hundred requests and kill a worker during them."""
    with WorkerPool(greet, processes=5, name="greet", location=sys.argv[1] if len(sys.argv) > 1 else None) as pool:
        serving = threading.Thread(target=pool.run)
        serving.start()
        with Client(pool.location) as client:
            first = client.request("greet", "first")
            futures = [client.submit("greet", f"client {number}") for number in range(200)]
            os.kill(first[1], signal.SIGKILL)
            answers = [future.result() for future in futures]
        assert [answer for answer, _ in answers] == [f"hello client {number}" for number in range(200)]
        print(f"200 answers from {len({pid for _, pid in answers})} processes over {pool.location.scheme}")
        pool.stop()
        serving.join()


if __name__ == "__main__":
    main()
