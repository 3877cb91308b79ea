"""What the children of the launchers' tests run. Payloads are JSON."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

from doorman.identity import Credential, hello
from doorman.launcher import Order
from doorman.launcher.launch_messages import read_order


def run(order: Order) -> int | None:
    wanted = json.loads(order.payload)
    result = globals()[wanted.pop("do")](order, **wanted)
    assert result is None or isinstance(result, int)
    return result


def noop(order: Order) -> None:
    pass


def leave(order: Order, code: int) -> int:
    return code


def leave_by_exit(order: Order, code: Any) -> None:
    sys.exit(code)


def fail(order: Order) -> None:
    raise RuntimeError("broken on purpose")


def die(order: Order, number: int) -> None:
    os.kill(os.getpid(), number)
    signal.pause()


def report(order: Order, path: str) -> None:
    """Write who this is, all at once."""
    found = descriptors()
    pidfd = os.pidfd_open(os.getpid())
    facts = {
        "pid": os.getpid(),
        "inode": os.fstat(pidfd).st_ino,
        "group": os.getpgrp(),
        "parent": os.getppid(),
        "attempt": order.attempt,
        "secret": order.secret.hex(),
        "cwd": str(Path.cwd()),
        "env": dict(os.environ),
        "argv": sys.argv,
        "blocked": sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ())),
        "ignored": [int(s) for s in signal.valid_signals() if signal.getsignal(s) is signal.SIG_IGN],
        "descriptors": found,
        "hello": hello(Credential(order.attempt, order.secret, "task")),
    }
    Path(path + ".part").write_text(json.dumps(facts))
    Path(path + ".part").rename(path)


def descriptors() -> list[str]:
    found = []
    for link in list(Path("/proc/self/fd").iterdir()):
        with contextlib.suppress(FileNotFoundError):  # The listing's own.
            found.append(str(link.readlink()))
    return found


def measure(order: Order, path: str, filler: str) -> None:
    Path(path).write_text(str(len(filler)))


def speak(order: Order) -> None:
    print("out", os.environ.get("WORD", ""))
    print("err", file=sys.stderr)


def speak_and_pause(order: Order) -> None:
    print("before the end")
    signal.pause()


def pause(order: Order, path: str = "") -> None:
    """Wait to be killed; tell by an open FIFO that it is running."""
    if path:
        os.write(os.open(path, os.O_WRONLY), b"!")
    signal.pause()


def until_end(order: Order, path: str) -> None:
    """Run until the descriptor that brought the order ends."""
    os.write(os.open(path, os.O_WRONLY), b"!")
    assert os.read(DESCRIPTOR, 1) == b""


def hook(order: Order, path: str) -> None:
    atexit.register(Path(path).write_text, "ran")
    threading.Thread(target=Path(path + ".thread").write_text, args=("ran",)).start()


def family(order: Order, path: str, leave: bool = False) -> None:
    """Make a child in the group, and a grandchild in a session of its own whose parent ends; all hold the FIFO."""
    holder = os.open(path, os.O_WRONLY)
    sleep = [sys.executable, "-S", "-c", "import signal; signal.pause()"]
    with subprocess.Popen(sleep, pass_fds=(holder,)) as child:
        child.returncode = 0  # Left alone on purpose.
    between = os.fork()
    if between == 0:
        os.setsid()
        if os.fork() == 0:
            os.set_inheritable(holder, True)
            os.execv(sleep[0], sleep)
        os._exit(0)
    os.waitpid(between, 0)  # Told of only when it has left the group.
    os.write(holder, b"!")
    if not leave:
        signal.pause()


def run_away(order: Order, path: str) -> None:
    """Have a child fork, leave, and end, over and over: none stays long enough to be found."""
    holder = os.open(path, os.O_WRONLY)
    os.write(holder, b"!")
    if not os.fork():
        while not os.fork():
            os.setsid()
        os._exit(0)
    signal.pause()


def say_hello(order: Order, path: str, held: str) -> None:
    Path(path).write_text(json.dumps(hello(Credential(order.attempt, order.secret, "task"))))
    os.write(os.open(held, os.O_WRONLY), b"!")
    signal.pause()


if __name__ == "__main__":
    # Reading an order gives the process the arguments of its manager.
    DESCRIPTOR = int(sys.argv[1])
    sys.exit(run(read_order(DESCRIPTOR)))
