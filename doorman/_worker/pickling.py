"""Pickling of calls for other processes, with errors that name the part that cannot be pickled."""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, Final

import cloudpickle

from doorman.errors import TaskNotPicklable

_MAIN: Final = b"__main__"
_shown = reprlib.Repr()  # Not repr(): its text may be as long as the value, and it may raise.
_shown.maxother = _shown.maxstring = 120


def pickle_call(name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Return the pickled call of the task ``name``. Raises TaskNotPicklable."""
    try:
        return _by_value((fn, args, kwargs))
    except Exception as error:
        raise not_picklable(f"task {name!r}", error, fn, args, kwargs) from error


def pickle_initializer(initializer: Callable[[], object] | None) -> bytes:
    """Return the pickled initializer; empty bytes for None. Raises TypeError, TaskNotPicklable."""
    if initializer is None:
        return b""
    if not callable(initializer):
        raise TypeError(f"initializer is called in each process, but {initializer!r} cannot be called")
    try:
        return _by_value(initializer)
    except Exception as error:
        raise TaskNotPicklable(
            f"the initializer cannot travel to a process: {error}; open files, locks and connections inside it"
        ) from error


def pickle_value(thing: Any) -> bytes:
    """Return a pickled object: by name if another process can import it, by value if it belongs to the main script.

    The standard pickle is faster than cloudpickle, but assumes that the other process has the same main module. Raises
    the exceptions of pickling, which runs the user's code.
    """
    try:
        data = pickle.dumps(thing, pickle.HIGHEST_PROTOCOL)
    except Exception:  # noqa: BLE001 - cloudpickle can pickle a lambda or a local class, or raises the better error
        return _by_value(thing)
    if _MAIN in data:
        return _by_value(thing)
    by_value = cloudpickle.list_registry_pickle_by_value()
    if by_value and any(name.encode() in data for name in by_value):
        return _by_value(thing)
    return data


def not_picklable(
    what: str, error: Exception, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]
) -> TaskNotPicklable:
    """Return the error that names the part of a call that cannot be pickled."""
    refusal = TaskNotPicklable(
        f"{what} cannot travel to a process: {_culprit(fn, args, kwargs)}: {error}; "
        "give it plain values, and open files, locks and connections inside it"
    )
    refusal.__cause__ = error
    return refusal


def _by_value(thing: Any) -> bytes:
    data: bytes = cloudpickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    return data


def _culprit(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    parts = [("its callable", fn), *((f"argument {n}", a) for n, a in enumerate(args, 1))]
    parts += [(f"argument {name}=", value) for name, value in kwargs.items()]
    for place, part in parts:
        try:
            _by_value(part)
        except Exception:  # noqa: BLE001 - pickling runs the user's code, which may raise anything
            return f"{place} {_shown.repr(part)}"
    return "its parts together"
