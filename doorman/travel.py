"""Travel: what a process is to call, as bytes that go there; or which part of it cannot, and what to do."""

from __future__ import annotations

import pickle
import reprlib
from collections.abc import Callable, Mapping
from typing import Any

import cloudpickle

from doorman.errors import TaskNotPicklable

__all__ = ["packed_call", "packed_initializer"]

_shown = reprlib.Repr()  # Not repr(): that may be as long as the value, or raise.
_shown.maxother = _shown.maxstring = 120


def packed_call(name: str, fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    """Return the call of the task ``name``. Raises TaskNotPicklable, which names the part that cannot travel."""
    try:
        return _packed((fn, args, kwargs))
    except Exception as error:
        raise TaskNotPicklable(
            f"task {name!r} cannot travel to a process: {_culprit(fn, args, kwargs)}: {error}; "
            "give it plain values, and open files, locks and connections inside the task"
        ) from error


def packed_initializer(initializer: Callable[[], object] | None) -> bytes:
    """Return what each process calls first; nothing for None. Raises TypeError, TaskNotPicklable."""
    if initializer is None:
        return b""
    if not callable(initializer):
        raise TypeError(f"initializer is called in each process, but {initializer!r} cannot be called")
    try:
        return _packed(initializer)
    except Exception as error:
        raise TaskNotPicklable(
            f"the initializer cannot travel to a process: {error}; open files, locks and connections inside it"
        ) from error


def _packed(thing: Any) -> bytes:
    data: bytes = cloudpickle.dumps(thing, protocol=pickle.HIGHEST_PROTOCOL)
    return data


def _culprit(fn: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> str:
    parts = [("its callable", fn), *((f"argument {n}", a) for n, a in enumerate(args, 1))]
    parts += [(f"argument {name}=", value) for name, value in kwargs.items()]
    for place, part in parts:
        try:
            cloudpickle.dumps(part)
        except Exception:  # noqa: BLE001 - pickling runs code of the user's, which may raise anything
            return f"{place} {_shown.repr(part)}"
    return "its parts together"
