"""Typed payloads: a listener's annotations say what its arguments become."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import functools
import inspect
import typing
import uuid
from collections.abc import Callable
from typing import Any, Final

import msgspec

__all__ = ["converter"]

_SCALARS: Final = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)


def converter(listener: Callable[..., Any]) -> Callable[..., Any]:
    """Return the listener itself, or one that first converts the arguments whose annotations ask for it.

    Dataclasses, msgspec structs, TypedDicts, enums, sets, dates, UUIDs and decimals ask for it, also inside lists,
    dicts, tuples and unions. An argument that does not fit raises msgspec.ValidationError in the listener's place.
    """
    wanted = _wanted(listener)
    if not wanted:
        return listener
    signature = inspect.signature(listener)

    @functools.wraps(listener)
    def convert(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        for name, annotation in wanted.items():
            if name in bound.arguments:
                bound.arguments[name] = msgspec.convert(bound.arguments[name], annotation)
        return listener(*bound.args, **bound.kwargs)

    return convert


def _wanted(listener: Callable[..., Any]) -> dict[str, Any]:
    """Return the parameters to convert. A listener whose annotations cannot be read converts nothing."""
    try:
        hints = typing.get_type_hints(listener)
        parameters = inspect.signature(listener).parameters.values()
    except (NameError, TypeError, ValueError, AttributeError):
        return {}
    single = (
        inspect.Parameter.POSITIONAL_ONLY,
        inspect.Parameter.POSITIONAL_OR_KEYWORD,
        inspect.Parameter.KEYWORD_ONLY,
    )
    return {
        parameter.name: hints[parameter.name]
        for parameter in parameters
        if parameter.kind in single and parameter.name in hints and _asks(hints[parameter.name])
    }


def _asks(annotation: Any) -> bool:
    if typing.get_args(annotation):
        inner = any(_asks(part) for part in typing.get_args(annotation))
        return inner or typing.get_origin(annotation) in (set, frozenset)
    if not isinstance(annotation, type):
        return False
    return (
        dataclasses.is_dataclass(annotation)
        or typing.is_typeddict(annotation)
        or issubclass(annotation, (msgspec.Struct, enum.Enum, set, frozenset, *_SCALARS))
    )
