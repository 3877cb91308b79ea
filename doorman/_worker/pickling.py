"""Pickling of calls for other processes, with errors that name the part that cannot be pickled."""

from __future__ import annotations

import contextlib
import functools
import inspect
import io
import os
import pickle
import reprlib
import sys
import weakref
from collections.abc import Callable, Iterator, Mapping
from types import FunctionType
from typing import Any, Final

import cloudpickle
import msgspec

from doorman.errors import TaskNotPicklable
from doorman.launcher import main_module
from doorman.launcher.main_module import Script
from doorman.process import absolute_folders

_MAIN: Final = b"_main__"  # The end of "__main__" and of "__mp_main__".
_PREPARED: Final = b"\x01"  # First byte of a call with needs; a pickle begins with another one.
_LENGTH: Final = 4  # bytes
_CACHED: Final = type(functools.cache(len))
_shown = reprlib.Repr()  # Not repr(): its text may be as long as the value, and it may raise.
_shown.maxother = _shown.maxstring = 120


class _Needs(msgspec.Struct, array_like=True, frozen=True):
    """What a process must do before it unpickles a call."""

    sys_path: list[bytes] | None
    """Folders to import from; None if they are those with which this program was started."""
    script: Script | None


def pickle_call(
    name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any], *, same_files: bool = True
) -> bytes:
    """Return a pickled call, which errors name, for `unpickle`.

    ``same_files`` -- the process can import the script and has the folders of `sys.path`
    Raises TaskNotPicklable; RuntimeError while a worker imports the script.
    """
    try:
        data = _pickled((fn, args, kwargs), _is_importable if same_files else _never)
    except Exception as error:
        raise not_picklable(name, error, fn, args, kwargs) from error
    return _prefix(_MAIN in data) + data if same_files else data


def pickle_initializer(
    initializer: Callable[..., object] | None, args: tuple[Any, ...] = (), *, same_files: bool = True
) -> bytes:
    """Return the pickled initializer with its arguments; empty bytes for None. Raises TypeError, TaskNotPicklable."""
    if initializer is None:
        return b""
    if not callable(initializer):
        raise TypeError(f"initializer is called in each process, but {initializer!r} cannot be called")
    return pickle_call("the initializer", initializer, args, {}, same_files=same_files)


def run_initializer(data: bytes) -> None:
    """Call a pickled initializer, if there is one. Raises what it raises."""
    if data:
        initializer, args, _ = unpickle(data)
        initializer(*args)


def unpickle(data: bytes) -> Any:
    """Meet the needs of a pickled call, and unpickle it. Raises ImportError and what unpickling raises."""
    try:
        if not data.startswith(_PREPARED):
            return pickle.loads(data)
        start, needs = _split(data)
        _meet(needs)
        return pickle.loads(memoryview(data)[start:])
    except (ModuleNotFoundError, AttributeError) as error:
        error.add_note(_NOT_FOUND)
        raise


def script_of(data: bytes) -> Script | None:
    """Return the script that a pickled call needs."""
    return _decode_needs(_split(data)[1]).script if data.startswith(_PREPARED) else None


def pickle_value(thing: Any) -> bytes:
    """Return a pickled result for the parent. Raises the exceptions of pickling, which runs the user's code."""
    return _pickled(thing, lambda: main_module.received() or _is_importable())


def _pickled(thing: Any, has_names: Callable[[], bool]) -> bytes:
    """Return a pickled object: by name if another process can import it, else by value.

    The standard pickle is faster than cloudpickle, but does not know which modules the other process cannot import.
    ``has_names`` returns whether the other process has the names of the main module.
    """
    try:
        data = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - cloudpickle can pickle a lambda or a local class, or raises the better error
        return _by_value(thing, has_names())
    if _MAIN in data:
        guarded = main_module.guarded_names()
        if not has_names() or any(name.encode() in data for name in guarded):
            return _by_value(thing, has_names())
    by_value = cloudpickle.list_registry_pickle_by_value()
    if by_value and any(name.encode() in data for name in by_value):
        return _by_value(thing, has_names())
    return data


def _is_importable() -> bool:
    return main_module.script() is not None


def _never() -> bool:
    return False


def not_picklable(
    what: str, error: Exception, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TaskNotPicklable:
    """Return the error that names the part of a call that cannot be pickled."""
    refusal = TaskNotPicklable(
        f"{what} cannot travel to a process: {_culprit(fn, args, kwargs)}: {error}; "
        f"{_way_out(fn, *args, *kwargs.values())}"
    )
    refusal.__cause__ = error
    return refusal


_path_at_start: Final = list(sys.path)
_prefixes: dict[bool, tuple[list[str], bytes]] = {}
_met = b""
_NOT_FOUND: Final = (
    "a worker process imports what a call refers to: add the folder of a module to sys.path before the task is added, "
    "or pickle the module by cloudpickle.register_pickle_by_value(module); define functions of a script at its top "
    "level, outside the main guard"
)
_encode_needs: Final = msgspec.msgpack.Encoder().encode
_decode_needs: Final = msgspec.msgpack.Decoder(_Needs).decode


def _prefix(needs_main: bool) -> bytes:
    """Return the needs of a call that is pickled now. Cached, because they rarely change."""
    cached = _prefixes.get(needs_main)
    if cached is not None and cached[0] == sys.path:
        return cached[1]
    main_module.check_not_importing()
    folders = None if sys.path == _path_at_start else absolute_folders(sys.path)
    script = main_module.script() if needs_main else None
    prefix = b""
    if folders is not None or script is not None:
        needs = _encode_needs(_Needs(folders, script))
        prefix = _PREPARED + len(needs).to_bytes(_LENGTH, "big") + needs
    _prefixes[needs_main] = (list(sys.path), prefix)
    return prefix


def _split(data: bytes) -> tuple[int, bytes]:
    """Return where the pickle begins, and the encoded needs before it."""
    head = len(_PREPARED) + _LENGTH
    start = head + int.from_bytes(data[len(_PREPARED) : head], "big")
    return start, data[head:start]


def _meet(encoded: bytes) -> None:
    """Extend `sys.path` and import the script, unless the last call has had the same needs."""
    global _met
    if encoded == _met:
        return
    needs = _decode_needs(encoded)
    if needs.sys_path is not None:
        folders = [os.fsdecode(folder) for folder in needs.sys_path]
        # Folders that the user's code has added here, such as in an initializer, stay.
        sys.path[:] = [*folders, *(folder for folder in sys.path if folder not in folders)]
    if needs.script is not None:
        _prefixes.clear()  # For `check_not_importing`.
        main_module.import_script(needs.script)
    _met = encoded


class _CallPickler(cloudpickle.Pickler):  # type: ignore[misc]  # untyped
    """Pickles functions and classes that other processes cannot import. Those of the main module share its globals.

    They keep what the other process has: globals and class attributes are set once, except for changed code.
    """

    def __init__(self, file: io.BytesIO, *, by_name: bool) -> None:
        super().__init__(file, protocol=pickle.HIGHEST_PROTOCOL)
        self._main = vars(sys.modules["__main__"])
        self._by_name = by_name
        self._guarded = main_module.guarded_names()
        self.globals_ref[id(self._main)] = _MainGlobals()

    def reducer_override(self, obj: Any) -> Any:
        kind = type(obj)
        if kind is io.TextIOWrapper and obj is not sys.stdout and obj is not sys.stderr:
            raise TypeError(f"cannot pickle an open file: {obj!r}")  # cloudpickle would copy its content.
        if kind is not FunctionType and kind is not _CACHED and not issubclass(kind, type):
            return NotImplemented
        name = self._name_in_main(obj)
        if name and self._by_name and name not in self._guarded:
            return NotImplemented  # As the standard pickle does.
        if kind is _CACHED:
            return (_cached, (name, obj.__wrapped__, obj.cache_parameters())) if name else NotImplemented
        reduced = super().reducer_override(obj)
        if not isinstance(reduced, tuple) or len(reduced) < 6:
            return reduced
        if kind is not FunctionType:
            make, arguments = reduced[:2]
            tracker_id = arguments[-2]  # By which cloudpickle finds the class again, but only after making another one.
            _classes[tracker_id] = obj
            return (
                _existing_class,
                (make, arguments, tracker_id),
                *reduced[2:5],
                functools.partial(_restore_class, reduced[5], name),
            )
        if obj.__globals__ is self._main and self._by_name:
            slots = reduced[2][1]
            slots["__globals__"] = {
                key: value for key, value in slots["__globals__"].items() if main_module.is_missing(key)
            }
        return (*reduced[:5], functools.partial(_restore_function, reduced[5], name))

    def _name_in_main(self, obj: Any) -> str:
        """Return the name of a global of the main module; empty if the object is none."""
        module, name = getattr(obj, "__module__", None), getattr(obj, "__qualname__", "")
        if module not in ("__main__", main_module.ALIAS):
            return ""
        found: Any = self._main.get(name.partition(".")[0])
        for attribute in name.split(".")[1:]:
            found = getattr(found, attribute, None)
        return name if found is obj else ""


class _MainGlobals:
    """Stands for the globals of the main module, and is unpickled as those of the other process."""

    def __reduce__(self) -> tuple[Any, ...]:
        main = sys.modules["__main__"]
        return main_module.received_globals, (getattr(main, "__file__", None), getattr(main, "__package__", None))


_classes: Final[weakref.WeakValueDictionary[str, type]] = weakref.WeakValueDictionary()
"""Classes that have left this process by value, or have arrived, by the id that cloudpickle gives them."""
_new_classes: Final[set[int]] = set()
"""Ids of the classes that have arrived without their attributes."""


def _by_value(thing: Any, by_name: bool) -> bytes:
    with io.BytesIO() as file:
        _CallPickler(file, by_name=by_name).dump(thing)
        return file.getvalue()


def _restore_function(restore: Callable[[Any, Any], object], name: str, function: Any, state: Any) -> None:
    """Set the state of an unpickled function. Its globals keep their values, but changed code replaces earlier code."""
    attributes, slots = state
    here = function.__globals__
    changed = {
        key: value for key, value in slots["__globals__"].items() if key not in here or _changed(here[key], value)
    }
    restore(function, (attributes, {**slots, "__globals__": changed}))
    _bind(name, function)


def _existing_class(make: Callable[..., type], arguments: tuple[Any, ...], tracker_id: str) -> type:
    """Return the class of this process; only the first time, make it, which calls ``__init_subclass__``."""
    found = _classes.get(tracker_id)
    if found is None:
        found = _classes[tracker_id] = make(*arguments)
        _new_classes.add(id(found))
    return found


def _restore_class(restore: Callable[[Any, Any], object], name: str, kind: type, state: Any) -> None:
    """Set the attributes of an unpickled class, once."""
    if id(kind) in _new_classes:
        _new_classes.discard(id(kind))
        restore(kind, state)
    _bind(name, kind)


def _cached(name: str, function: Any, parameters: dict[str, Any]) -> Any:
    """Return the function of this process that caches results, with its cache."""
    return _bind(name, functools.lru_cache(**parameters)(function))


def _bind(name: str, value: Any) -> Any:
    """Make an unpickled function or class a global of the main module, unless that has it; return the global."""
    here = main_module.received_globals()
    if not name or "." in name or not main_module.received():
        return value
    if name not in here or _changed(here[name], value):
        here[name] = value
    return here[name]


def _changed(earlier: Any, later: Any) -> bool:
    """Return whether a function or a class that arrived by value was defined again, as in a notebook."""
    if not main_module.received():
        return False
    if isinstance(earlier, type) and isinstance(later, type):
        return earlier is not later
    codes = [getattr(inspect.unwrap(value), "__code__", None) for value in (earlier, later) if callable(value)]
    return len(codes) == 2 and None not in codes and codes[0] != codes[1]


def _culprit(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    parts = [*((f"argument {n}", a) for n, a in enumerate(args, 1))]
    parts += [(f"argument {name}=", value) for name, value in kwargs.items()]
    for place, part in (("its callable", fn), *parts):
        if not _picklable(part):
            found = next(_unpicklable_globals(part, set()), None)
            return f"{place} {_shown.repr(part)}" + (f" uses {found}" if found else "")
    return "its parts together"


def _unpicklable_globals(part: Any, seen: set[int]) -> Iterator[str]:
    """Yield the globals of a function, and of the functions that it calls, that cannot be pickled."""
    while isinstance(part, functools.partial):
        part = part.func
    function = inspect.unwrap(part) if callable(part) else part
    if not isinstance(function, FunctionType) or id(function) in seen:
        return
    seen.add(id(function))
    for name, value in inspect.getclosurevars(function).globals.items():
        if not _picklable(value):
            deeper = next(_unpicklable_globals(value, seen), None)
            yield deeper or f"the global {name} = {_shown.repr(value)}"


def _picklable(part: Any) -> bool:
    with contextlib.suppress(Exception):  # Pickling runs the user's code, which may raise anything.
        _pickled(part, _is_importable)
        return True
    return False


def _way_out(*parts: Any) -> str:
    why = main_module.why_by_value() if any(map(_is_of_main, parts)) else ""
    return why or "give it plain values, and open files, locks and connections inside it"


def _is_of_main(part: Any) -> bool:
    """Return whether a function, its partial arguments or the class of a value belong to the main module."""
    if isinstance(part, functools.partial):
        return any(map(_is_of_main, (part.func, *part.args)))
    names = {getattr(part, "__module__", None), type(part).__module__}
    return not names.isdisjoint(("__main__", main_module.ALIAS))
