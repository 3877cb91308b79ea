"""The user's main module: how another process gets it, by an import as ``__mp_main__`` or by value.

A script with a main guard is imported, as multiprocessing does. Other code of ``__main__`` travels by value into one
module of the process, see `received_globals`.
"""

from __future__ import annotations

import os
import sys
from types import CodeType, ModuleType
from typing import Any, Final

import msgspec

ALIAS: Final = "__mp_main__"
"""Name of the imported script, as in multiprocessing. Pickles of its classes have it, so the parent knows it too."""

sys.modules.setdefault(ALIAS, sys.modules["__main__"])


class Script(msgspec.Struct, array_like=True, frozen=True):
    """A main module that other processes can import."""

    name: bytes
    """Name of the module after ``python -m``; empty for a file."""
    path: bytes
    """Path of the file, perhaps within a zip file; as bytes, because it may be invalid UTF-8."""

    def __str__(self) -> str:
        return os.fsdecode(self.name or self.path)


class _State:
    """The main module of this process."""

    worker = False
    """Whether the process runs a task: its `__main__` is not the user's before an import or a first value."""
    imported: Script | None = None
    """The script that this process has imported."""
    importing: Script | None = None
    received: ModuleType | None = None
    """The module of code that arrived by value."""
    read: ModuleType | None = None
    """The main module that `script` has examined, with its findings."""
    script: Script | None = None
    why = ""
    bound: frozenset[str] = frozenset()
    """The names that an import of the script binds."""
    guarded: frozenset[str] = frozenset()
    """The names that only its main guard binds."""


_state: Final = _State()


def become_worker() -> None:
    """Mark this process as one whose ``__main__`` is a program of doorman."""
    _state.worker = True


def script() -> Script | None:
    """Return the script of this process if others can import it; None if its code travels by value."""
    main = sys.modules["__main__"]
    if _state.imported is not None or _state.received is not None:
        return _state.imported
    if _state.read is not main:
        sys.modules[ALIAS] = main
        _state.script, _state.why = _examine(main)
        _state.read = main
    return _state.script


def check_not_importing() -> None:
    """Raise RuntimeError while a worker imports the script, which would never end if the import added tasks."""
    if _state.importing is not None:
        raise RuntimeError(
            f"{_state.importing} adds a task while a worker process imports it: put the code that starts processes "
            'under `if __name__ == "__main__":`'
        )


def why_by_value() -> str:
    """Return why the code of the main module travels by value, and the way out; empty if the script is imported."""
    return "" if script() is not None else _state.why


def guarded_names() -> frozenset[str]:
    """Return the names that only the main guard binds: an imported script does not have them."""
    return _state.guarded if script() is not None and _state.imported is None else frozenset()


def is_missing(name: str) -> bool:
    """Return whether the imported script may lack a global of this main module."""
    return _state.imported is None and name not in _state.bound


def _examine(main: ModuleType) -> tuple[Script | None, str]:
    """Return the importable script of a main module, or None and the reason."""
    from doorman.launcher import main_guard  # Parses source: a worker never needs it.

    file = getattr(main, "__file__", None)
    if file is None or file.startswith("<") or sys.flags.interactive or hasattr(sys, "ps1"):
        return None, (
            "this program has no script that a process could import, so its functions travel by value, with the "
            "globals that they use: define the function in a module, and it travels by name"
        )
    spec = getattr(main, "__spec__", None)
    name = "" if spec is None or spec.name == "__main__" else spec.name
    found = Script(os.fsencode(name), os.fsencode(os.path.abspath(file)))  # noqa: PTH100 - keeps links
    try:
        guard = main_guard.find(main, file)
    except (OSError, SyntaxError, ValueError, ImportError, AttributeError):
        return (
            None,
            f"the source of {found} cannot be read, so its functions travel by value: keep it beside the program",
        )
    if guard is None:
        return None, (
            f"{found} has no main guard, so its functions travel by value, with the globals that they use: put the "
            'code that starts tasks under `if __name__ == "__main__":`, and they travel by name'
        )
    _state.bound, _state.guarded = guard
    return found, ""


def import_script(wanted: Script) -> None:
    """Import a script as ``__mp_main__``, unless this process has. Raises ImportError, which names the script."""
    if _state.imported == wanted:
        return
    before = {name: sys.modules.get(name) for name in ("__main__", ALIAS)}
    _state.importing = wanted
    try:
        module, code = _load(wanted)
        # Before it runs: dataclasses and enums look up the module of their class.
        sys.modules["__main__"] = sys.modules[ALIAS] = module
        exec(code, vars(module))
    except BaseException as error:
        for name, earlier in before.items():
            if earlier is not None:
                sys.modules[name] = earlier
        if isinstance(error, KeyboardInterrupt):
            raise
        raise ImportError(
            f"{wanted} cannot be imported in a worker process: {type(error).__name__}: {error}; what only the main "
            'program may do belongs under `if __name__ == "__main__":`'
        ) from error
    finally:
        _state.importing = None
    _state.imported = wanted


def _load(wanted: Script) -> tuple[ModuleType, CodeType]:
    """Return a new module for a script, and its code."""
    import importlib.util  # Here, as most workers import no script.
    import zipimport

    name, path = os.fsdecode(wanted.name), os.fsdecode(wanted.path)
    module = ModuleType(ALIAS)
    module.__file__, module.__package__ = path, ""
    if name:
        spec = importlib.util.find_spec(name)
        if spec is None:
            raise ModuleNotFoundError(f"no module named {name!r}")
        loader: Any = spec.loader
        module.__spec__, module.__package__, module.__loader__ = spec, spec.parent, loader
        code = loader.get_code(name)
    elif os.path.isfile(path):  # noqa: PTH113 - as elsewhere in this module
        with open(path, "rb") as file:  # noqa: PTH123
            code = compile(file.read(), path, "exec", dont_inherit=True)
    else:
        archive = zipimport.zipimporter(os.path.dirname(path))  # noqa: PTH120
        module.__loader__, code = archive, archive.get_code("__main__")
    return module, code


def received_globals(file: str | None = None, package: str | None = None) -> dict[str, Any]:
    """Return the globals of the main module here; a worker without one gets a module, which stays ``__main__``."""
    if _state.worker and _state.imported is None and _state.received is None:
        module = ModuleType("__main__")
        if file is not None:
            module.__file__ = file
        module.__package__ = package
        _state.received = module
        sys.modules["__main__"] = sys.modules[ALIAS] = module
        _state.why = "the code of this process has arrived by value: define the function in a module"
    return vars(sys.modules["__main__"])


def received() -> bool:
    """Return whether the main module of this process consists of code that arrived by value."""
    return _state.received is not None
