"""Compute checksums of Python's standard library, with one process for each top-level package or module.

Run it with ``make demo``, or over another transport with ``make demo LOCATION=zmq+tcp``; LOCATION may also be a URL.
Each process proves its identity before its task starts, emits its progress as Remit events and returns its digests. At
the end they are compared with digests computed in this process.
"""

from __future__ import annotations

import hashlib
import os
import sys
import sysconfig
import time
from collections.abc import Iterator
from pathlib import Path

from doorman import ProcessManager, Rule, Task, current_task

LIBRARY = Path(sysconfig.get_path("stdlib"))
MAX_PROCESSES = 4 * len(os.sched_getaffinity(0))
"""Processes while the machine is busy."""
BLOCK = 1 << 20

Digests = dict[str, tuple[str, int]]
"""SHA-256 and size in bytes of each file."""


def main() -> int:
    """Hash all files, print the processes, verify the digests; return the exit code."""
    location = sys.argv[1] if len(sys.argv) > 1 else None
    if location and "://" not in location:
        os.environ["REMIT_TRANSPORT"], location = location, None  # a private location over that transport
    packages = sorted(packages_of(LIBRARY))
    with ProcessManager(location) as manager:
        manager.add_rule(Rule(processes=MAX_PROCESSES, minimum_processor_load=50, maximum_processor_load=100))
        progress = Progress(len(packages))
        manager.server.add_listener("hashed", progress.hashed)
        tasks = [manager.add_task(Task(hash_package, str(path), name=path.stem)) for path in packages]
        print(f"{len(tasks)} packages of {LIBRARY} over {manager.server.location}")
        started = time.perf_counter()
        while manager.tick():
            progress.show()
            manager.wait(0.1)
        seconds = time.perf_counter() - started
        progress.show(last=True)
    show(tasks)
    return check(tasks, seconds)


def packages_of(library: Path) -> Iterator[Path]:
    """Yield each top-level package and module, without installed distributions."""
    for path in library.iterdir():
        if path.name in ("site-packages", "dist-packages", "__pycache__"):
            continue
        if path.is_dir() or path.suffix in (".py", ".so"):
            yield path


def hash_package(package: str) -> Digests:
    """Hash each file of a package and report progress. Runs in a worker process."""
    digests: Digests = {}
    reported = time.monotonic()
    for path in files_of(Path(package)):
        digests[str(path)] = hash_file(path)
        if time.monotonic() - reported > 0.1:
            reported = time.monotonic()
            current_task().emit("hashed", current_task().name, len(digests))
    current_task().emit("hashed", current_task().name, len(digests))
    return digests


def files_of(package: Path) -> Iterator[Path]:
    """Yield the files of a package, except byte code, which Python may be writing."""
    if package.is_file():
        yield package
        return
    for path in sorted(package.rglob("*")):
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
            yield path


def hash_file(path: Path) -> tuple[str, int]:
    """Return a file's SHA-256 and its size."""
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        while block := file.read(BLOCK):
            digest.update(block)
            size += len(block)
    return digest.hexdigest(), size


class Progress:
    """Progress line on the terminal: numbers of hashed files and packages."""

    def __init__(self, packages: int) -> None:
        self._packages = packages
        self._files: dict[str, int] = {}

    def hashed(self, package: str, files: int) -> None:
        """Listener: record how many files of a package are hashed."""
        self._files[package] = files

    def show(self, *, last: bool = False) -> None:
        """Rewrite the line; without a terminal print only the last one."""
        if last or sys.stdout.isatty():
            line = f"{sum(self._files.values())} files hashed in {len(self._files)} of {self._packages} packages"
            print(f"\r{line}" if sys.stdout.isatty() else line, end="\n" if last else "", flush=True)


def show(tasks: list[Task]) -> None:
    """Print each task with its proven process."""
    print(f"{'task':<28}{'pid':>8}{'inode':>10}{'attempt':>9}{'seconds':>9}{'exit':>6}{'bytes':>12}")
    for task in tasks:
        digests: Digests = task.result()
        size = sum(size for _, size in digests.values())
        identity = task.identity
        assert identity is not None
        print(
            f"{task.name:<28}{identity.pid:>8}{identity.inode or 0:>10}{task.attempt:>9}"
            f"{task.duration:>9.3f}{task.exit_code:>6}{size:>12,}"
        )


def check(tasks: list[Task], seconds: float) -> int:
    """Hash all files again in this process and compare."""
    found = {path: digest for task in tasks for path, digest in task.result().items()}
    expected = {str(path): hash_file(path) for package in packages_of(LIBRARY) for path in files_of(package)}
    wrong = sorted(path for path in found.keys() | expected.keys() if found.get(path) != expected.get(path))
    size = sum(size for _, size in expected.values())
    strengths = sorted({task.identity.strength for task in tasks if task.identity})
    print(f"{len(tasks)} processes, proven by {', '.join(strengths)}, hashed {size:,} bytes in {seconds:.2f} s")
    if wrong:
        print(f"{len(wrong)} of {len(expected)} digests differ, the first: {wrong[0]}")
        return 1
    print(f"all {len(expected)} digests are those of an independent pass")
    return 0


if __name__ == "__main__":
    sys.exit(main())
