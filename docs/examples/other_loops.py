"""Run tasks under trio, anyio and Qt, if they are installed: ``python other_loops.py``."""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec

from doorman import ProcessManager, Task


def under_trio(manager: ProcessManager) -> None:
    import trio

    async def run() -> None:
        while manager.tick():
            await trio.to_thread.run_sync(manager.wait, 1.0)

    trio.run(run)


def under_anyio(manager: ProcessManager) -> None:
    import anyio

    async def run() -> None:
        while manager.tick():
            await anyio.to_thread.run_sync(manager.wait, 1.0)

    anyio.run(run)


def under_qt(manager: ProcessManager) -> None:
    from PySide6.QtCore import QCoreApplication, QTimer

    application = QCoreApplication([])
    timer = QTimer()
    timer.timeout.connect(lambda: manager.tick() or application.quit())
    timer.start(20)
    application.exec()


def without_a_loop(manager: ProcessManager) -> None:
    while manager.tick():
        manager.wait(1.0)


LOOPS: dict[str, Callable[[ProcessManager], None]] = {
    "doorman": without_a_loop,
    "trio": under_trio,
    "anyio": under_anyio,
    "PySide6": under_qt,
}


def main() -> None:
    for library, run in LOOPS.items():
        if find_spec(library) is None:
            print(f"{library}: not installed")
            continue
        with ProcessManager() as manager:
            tasks = [manager.add_task(Task(pow, 2, number)) for number in range(4)]
            run(manager)
        print(f"{library}: {[task.result() for task in tasks]}")


if __name__ == "__main__":
    main()
