"""Functions of the user's script: programs that print the same under multiprocessing and under Doorman."""

from __future__ import annotations

import os
import subprocess
import sys
import types
import zipapp
from pathlib import Path

import pytest
from waiting import DEADLINE

from doorman.launcher import main_guard

SCRIPTS = Path(__file__).with_name("scripts")
SUPPORT = Path(__file__).parents[1] / "support"
KINDS = ("executor", "calls", "tasks")
"""A pool of processes, a process for each call, and tasks of a group manager."""


def run(words: list[str], kinds: str, stdin: str | None = None) -> tuple[int, str, str]:
    """Run a program; return its exit code, its output and its errors."""
    done = subprocess.run(
        [sys.executable, *words, kinds, "an argument"],
        cwd=SCRIPTS,
        env={**os.environ, "PYTHONPATH": str(SUPPORT), "PYTHONDONTWRITEBYTECODE": "1"},
        input=stdin,
        capture_output=True,
        text=True,
        timeout=2 * DEADLINE,
        check=False,
    )
    return done.returncode, done.stdout, done.stderr


def assert_same(
    words: list[str], kinds: tuple[str, ...] = KINDS, stdin: str | None = None, *, spawns: bool = True
) -> None:
    """Compare with spawn; with fork where spawn cannot run the program."""
    code, expected, errors = run(words, "spawn" if spawns else "fork", stdin)
    if code and spawns:
        code, expected, errors = run(words, "fork", stdin)
    assert (code, errors) == (0, "")
    _, _, body = expected.partition("\n")
    code, output, errors = run(words, ",".join(kinds), stdin)
    assert (code, errors, output) == (0, "", "".join(f"== {kind}\n{body}" for kind in kinds))


PATHS = sorted(SCRIPTS.glob("*.py"))


@pytest.mark.parametrize("path", PATHS, ids=lambda path: path.stem)
def test_a_script_prints_what_it_prints_under_multiprocessing(path):
    text = path.read_text()
    others = KINDS[1:] if os.environ.get("DOORMAN_SCRIPTS") == "all" else (KINDS[1 + PATHS.index(path) % 2],)
    # What a call leaves in its process is seen by the next call only in a pool.
    kinds = KINDS[:1] if text.startswith("# state") else (KINDS[0], *others)
    assert_same([str(path)], kinds, spawns="without a guard" not in text)


@pytest.mark.parametrize("name", ["counters", "exceptions", "nested_fork", "registry", "slots"])
def test_without_its_guard_a_script_prints_what_it_prints_under_fork(name, tmp_path):
    path = tmp_path / f"{name}.py"
    text = (SCRIPTS / f"{name}.py").read_text()
    path.write_text(text.replace('if __name__ == "__main__":', "if True:"))
    assert text != path.read_text()
    assert_same([str(path)], KINDS[:1], spawns=False)


@pytest.mark.parametrize("module", ["tool.run", "tool"])
def test_a_module_prints_what_it_prints_under_multiprocessing(module):
    assert_same(["-m", module], KINDS[:1])


def test_a_zip_file_prints_what_it_prints_under_multiprocessing(tmp_path):
    for name in ("guarded", "unguarded"):
        source = tmp_path / name
        source.mkdir()
        script = SCRIPTS / ("pickles.py" if name == "guarded" else "unguarded.py")
        (source / "__main__.py").write_text(script.read_text())
        zipapp.create_archive(source, tmp_path / f"{name}.pyz")
        assert_same([str(tmp_path / f"{name}.pyz")], KINDS[:1], spawns=False)


@pytest.mark.parametrize("how", ["-c", "-"])
def test_a_program_without_a_file_prints_what_it_prints_under_fork(how):
    text = (SCRIPTS / "unguarded.py").read_text()
    assert_same(["-c", text] if how == "-c" else ["-"], KINDS[:1], text if how == "-" else None, spawns=False)


# -- what multiprocessing does not do ------------------------------------------------------------------------------


def prints(folder: Path, text: str, *arguments: str, timeout: float = 2 * DEADLINE) -> str:
    """Return what a program prints, on both streams."""
    path = folder / "program.py"
    path.write_text(text)
    done = subprocess.run(
        [sys.executable, str(path), *arguments],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=timeout,
        check=False,
    )
    return done.stdout


IMPORTED = """
import sys, threading
from doorman import ProcessManager, Task
{}
print("imported as", __name__, flush=True)
def number(n): return n
def spread(): return [threading.active_count(), sys.modules["__main__"].__name__]
if __name__ == "__main__":
    with ProcessManager() as manager:
        tasks = [manager.add_task(Task(number, n)) for n in range(3)]
        print([task.result(30) for task in tasks], manager.add_task(Task(spread)).result(30), flush=True)
        print(manager.add_task(Task(abs, -2)).result(30))
"""

KILLED = """
import os
if __name__ != "__main__" and not os.path.exists("killed"):
    open("killed", "w").close()
    os.kill(os.getpid(), 9)
"""
"""The first import ends its process."""


@pytest.mark.parametrize(
    ("extra", "imports", "threads"),
    [
        ("", 1, 1),
        ("import asyncio, multiprocessing.pool\nfrom doorman import *\nfrom remit import *", 1, 1),
        ("threading.Thread(target=threading.Event().wait, daemon=True).start()", 5, 2),
        ("import random; random.seed(1)", 5, 1),
        ("import socket; connection = socket.socket()", 5, 1),
        (KILLED, 4, 1),
    ],
    ids=["plain", "libraries", "thread", "seed", "socket", "killed"],
)
def test_a_script_is_imported_once_unless_processes_must_not_share_what_it_leaves(tmp_path, extra, imports, threads):
    lines = prints(tmp_path, IMPORTED.format(extra)).splitlines()
    assert lines.count("imported as __mp_main__") == imports, lines
    assert [line for line in lines if not line.startswith("imported")] == [f"[0, 1, 2] [{threads}, '__mp_main__']", "2"]


SLOW = """
import os, sys
from doorman import ProcessManager, Task
from doorman.errors import TaskCancelled
def work(): pass
if __name__ == "__main__":
    with ProcessManager() as manager:
        task = manager.add_task(Task(work))
        while not os.path.exists("begun"):
            manager.tick()
            manager.wait(0.01)
        if sys.argv[1] == "killed":
            os.kill(os.getpid(), 9)
        task.cancel()
        try:
            task.result(30)
        except TaskCancelled:
            print("cancelled")
else:
    import threading
    open("begun", "w").close()
    threading.Event().wait()
"""


@pytest.mark.parametrize("end", ["cancelled", "killed"])
def test_a_slow_import_of_the_script_delays_no_end(tmp_path, end):
    # It returns when the processes that import the script have closed its standard output.
    assert prints(tmp_path, SLOW, end, timeout=DEADLINE) == ("cancelled\n" if end == "cancelled" else "")


@pytest.mark.parametrize(
    ("extra", "error"),
    [
        ("if __name__ != '__main__': {}['x']", "program.py cannot be imported in a worker process: KeyError: 'x'"),
        ("if __name__ != '__main__': sys.exit(3)", "program.py cannot be imported in a worker process: SystemExit: 3"),
        ("ProcessManager().add_task(Task(abs))", "program.py adds a task while a worker process imports it"),
    ],
)
def test_a_script_that_cannot_be_imported_is_named_with_the_reason(tmp_path, extra, error):
    assert error in prints(tmp_path, IMPORTED.format(extra))


def test_without_a_guard_the_error_names_the_global_and_the_guard(tmp_path):
    text = """
import threading
from doorman import {imports}
LOCK = threading.Lock()
def inner():
    with LOCK: return 1
def outer(): return inner()
try:
    {code}
except Exception as error:
    print(error)
"""
    pool = "with ProcessExecutor(1, {}) as pool: pool.submit(outer).result(30)"
    for imports, code in (
        ("ProcessExecutor", pool.format("")),
        ("ProcessExecutor", pool.format("initializer=outer")),
        ("ProcessManager, Task", "with ProcessManager() as manager: manager.add_task(Task(outer))"),
        ("ProcessManager", "ProcessManager(initializer=outer)"),
    ):
        printed = prints(tmp_path, text.format(imports=imports, code=code))
        assert "the global LOCK = <unlocked" in printed
        assert "no main guard" in printed
        assert 'if __name__ == "__main__":' in printed


def test_a_function_that_is_defined_again_replaces_the_earlier_one_and_data_stays():
    text = """
from doorman import ProcessExecutor
size = 1
def helper(): return "first"
def work():
    global size
    size += 1
    return helper(), size
with ProcessExecutor(1) as pool:
    print(pool.submit(work).result(30), pool.submit(work).result(30))
    def helper(): return "second"
    size = 100
    print(pool.submit(work).result(30))
"""
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, timeout=DEADLINE, check=False)
    assert (done.stdout, done.stderr) == ("('first', 2) ('first', 3)\n('second', 4)\n", "")


def test_a_folder_that_is_added_to_sys_path_after_the_manager_was_made_is_found(tmp_path):
    for name in ("late", "later"):
        (tmp_path / name).mkdir()
        (tmp_path / name / f"plugin_{name}.py").write_text(f"def fn(): return {name!r}\n")
    text = """
import importlib, sys
from doorman import {}
def make(name):
    sys.path.insert(0, name)
    return importlib.import_module(f"plugin_{{name}}").fn
if __name__ == "__main__":
    {}
"""
    for imports, code in (
        ("ProcessExecutor", "with ProcessExecutor(1) as p: f = lambda n: p.submit(make(n)).result(30); PRINT"),
        (
            "ProcessManager, Task",
            "with ProcessManager() as m: f = lambda n: m.add_task(Task(make(n))).result(30); PRINT",
        ),
        (
            "ProcessManager, Task",
            "with ProcessManager() as m: f = lambda n: m.add_task(Task(make(n), wrapper=['env'])).result(30); PRINT",
        ),
    ):
        program = text.format(imports, code.replace("PRINT", "print(f('late'), f('later'))"))
        assert prints(tmp_path, program) == "late later\n"


def test_a_module_that_processes_cannot_import_is_reported_with_the_way_out(tmp_path):
    text = """
import importlib.util
from doorman import ProcessExecutor
import cloudpickle, sys
spec = importlib.util.spec_from_file_location("odd.test_a", "odd.py")
odd = importlib.util.module_from_spec(spec)
sys.modules["odd.test_a"] = odd
spec.loader.exec_module(odd)
with ProcessExecutor(1) as pool:
    error = pool.submit(odd.fn).exception(30)
    print(error, error.__notes__)
    cloudpickle.register_pickle_by_value(odd)
    print(pool.submit(odd.fn).result(30))
"""
    (tmp_path / "odd.py").write_text("def fn(): return 'odd'\n")
    first, second = prints(tmp_path, text).splitlines()
    assert "No module named 'odd.test_a'" in first
    assert "cloudpickle.register_pickle_by_value(module)" in first
    assert second == "odd"


@pytest.mark.parametrize(("guard", "name"), [('if __name__ == "__main__":', "__mp_main__"), ("if True:", "__main__")])
def test_a_task_starts_processes_with_functions_of_the_script(tmp_path, guard, name):
    text = f"""
from doorman import ProcessExecutor, ProcessManager, Task
base = 10
def inner(x): return x + base, __name__
def outer(x):
    with ProcessExecutor(1) as executor:
        return executor.submit(inner, x).result(30), executor.submit(lambda: inner(x + 1)).result(30)
{guard}
    with ProcessManager() as manager:
        print(manager.add_task(Task(outer, 1)).result(60))
"""
    assert prints(tmp_path, text) == f"((11, {name!r}), (12, {name!r}))\n"


def test_a_worker_pool_has_the_functions_of_the_script(tmp_path):
    text = """
from doorman import WorkerPool
from remit import Client
import functools, threading
LOCK = threading.Lock()
@functools.cache
def answer(n):
    with LOCK: return [__name__, n]
if __name__ == "__main__":
    with WorkerPool(answer, processes=1) as pool:
        found = []
        thread = threading.Thread(target=lambda: found.append(Client(pool.location).request("job", 3, timeout=30)))
        thread.start()
        while thread.is_alive():
            pool.tick(); pool.wait(0.01)
        print(found)
"""
    assert prints(tmp_path, text).splitlines()[-1] == "[['__mp_main__', 3]]"


@pytest.mark.parametrize(
    ("source", "bound", "guarded"),
    [
        ("def f(): pass", None, None),
        ("if __name__ == '__main__': x = 1", "", "x"),
        ("if '__main__' == __name__: import a.b", "", "a"),
        ("y = 1\nif ready and __name__ == '__main__':\n  def x(): z = 1", "y", "x"),
        ("try:\n  if __name__ == '__main__': class_ = 1\nfinally:\n  end = 1", "end", "class_"),
        ("with a as b:\n  if __name__ == '__main__': from c import d as e", "b", "e"),
        ("if a: pass\nelif __name__ == '__main__': x, *y = z", "", "x y"),
        ("if __name__ != '__main__': a = 1\nelse: b = 1", "a", "b"),
        ("if __name__ == '__main__': a = b = 1\nelse: a = 2", "a", "b"),
        ("if __name__ == '__main__': print(x := 1)\nfor i in []: j = i", "i j", "x"),
        ("if __name__ == '__main__' or debug: x = 1", None, None),
        ("if __name__ == 'main': x = 1", None, None),
        ("if __name__ in ('__main__', '__mp_main__'): x = 1", None, None),
        ("def main():\n  if __name__ == '__main__': x = 1", None, None),
    ],
)
def test_a_guard_is_found_with_the_names_that_only_it_binds(tmp_path, source, bound, guarded):
    path = tmp_path / "program.py"
    path.write_text(source)
    expected = None if bound is None else (frozenset(bound.split()), frozenset(guarded.split()))
    assert main_guard.find(types.ModuleType("__main__"), str(path)) == expected
