"""Relay of the ZeroMQ guide with processes: step 1 signals step 2, which signals step 3.

Run it as ``python relay.py [TRANSPORT]``, such as ``zmq+tcp`` or ``redis://127.0.0.1:6379/0``; the default
is Unix sockets. Each step is a task. Each pair has exactly two members, so no other process can signal a step.
"""

from __future__ import annotations

import sys
import tempfile

from doorman import ProcessManager, Task
from remit import Location, Pair


def step1(next_step: Location) -> str:
    """Signal the next step."""
    with Pair.connect(next_step) as pair:
        pair.signal("step 1")
    return "step 1 signalled"


def step2(mine: Location, next_step: Location) -> str:
    """Wait for step 1, then signal the next step."""
    with Pair.bind(mine) as before, Pair.connect(next_step) as after:
        after.signal(f"{before.wait(30)}, step 2")
    return "step 2 signalled"


def locations(scheme: str, folder: str) -> tuple[Location, Location]:
    """Return two locations of a transport."""
    if "://" in scheme:
        return Location(scheme, prefix="step2"), Location(scheme, prefix="step3")
    if scheme.endswith("+tcp"):
        return Location(f"{scheme}://127.0.0.1:5762"), Location(f"{scheme}://127.0.0.1:5763")
    return Location(f"{scheme}://{folder}/step2"), Location(f"{scheme}://{folder}/step3")


def main() -> None:
    """Run steps 1 and 2 as processes, and step 3 here."""
    with tempfile.TemporaryDirectory(prefix="relay-") as folder:
        second, third = locations(sys.argv[1] if len(sys.argv) > 1 else "unix", folder)
        with ProcessManager() as manager, Pair.bind(third) as pair:
            tasks = [manager.add_task(Task(step2, second, third)), manager.add_task(Task(step1, second))]
            manager.run()
            print(f"{pair.wait(30)}, step 3: over {third.scheme}")
            assert [task.result() for task in tasks] == ["step 2 signalled", "step 1 signalled"]


if __name__ == "__main__":
    main()
