"""Conversion of the arguments of a listener to the types of its annotations."""

from __future__ import annotations

import functools
import inspect
import logging
import pathlib
import sys
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, NamedTuple

import msgspec

from remit.codec import EventMessage

logger = logging.getLogger("remit")

_PLAIN: Final = (bool, int, float, str, bytes, list, dict)
"""Types whose values need no conversion: a comparison of types validates them."""
_ANYTHING: Final = (inspect.Parameter.empty, Any, object)
_OF_PARAM_SPEC: Final = (typing.ParamSpecArgs, typing.ParamSpecKwargs)


class Conversion(NamedTuple):
    """How arguments are converted, unless positional ones ``fit`` as they are. Raises ValidationError, TypeError."""

    fits: Callable[..., bool]
    convert: Callable[..., tuple[Sequence[Any], Mapping[str, Any]]]


def bind(call: Callable[..., Any], how: Conversion | None, message: EventMessage) -> Callable[[], Any]:
    """Return a call of a listener with the converted arguments of an event; it raises the error if one does not fit."""
    if how is None or (not message.kwargs and how.fits(*message.args)):
        return functools.partial(call, *message.args, **message.kwargs)
    try:
        args, kwargs = how.convert(*message.args, **message.kwargs)
    except Exception as error:  # noqa: BLE001 - validators of the user may raise any exception
        call, args, kwargs = _raise, (error,), {}
    return functools.partial(call, *args, **kwargs)


def _raise(error: Exception) -> None:
    raise error


def conversion(listener: Callable[..., Any]) -> Conversion | None:
    """Return how the arguments of ``listener`` are converted; None if none is annotated.

    An annotation that cannot be resolved, or has no conversion, is logged; its argument is passed as received.
    """
    try:
        parameters = inspect.signature(listener).parameters
    except (ValueError, TypeError):  # Some functions in C have no signature.
        return None
    name = _name_of(listener)
    members: dict[str, tuple[Any, ...]] = {}
    for each, annotation in _resolve(listener, parameters).items():
        try:
            if isinstance(annotation, Exception):
                raise annotation
            if not isinstance(annotation, _OF_PARAM_SPEC) and annotation not in _ANYTHING:
                # A default of None is a value that the listener expects.
                accepted = annotation | None if parameters[each].default is None else annotation
                members[each] = _members(accepted)
        except Exception as error:  # noqa: BLE001 - an annotation is code, which may raise any exception
            logger.warning("parameter %r of listener %s is not converted: %s", each, name, error)
    return _conversion(name, parameters, members) if members else None


def _conversion(name: str, parameters: Mapping[str, inspect.Parameter], members: dict[str, Any]) -> Conversion:
    signature = inspect.Signature(list(parameters.values()))
    kinds = {each: parameter.kind for each, parameter in parameters.items()}
    positional = all(kind <= inspect.Parameter.POSITIONAL_OR_KEYWORD for kind in kinds.values())

    def convert_one(each: str, value: Any) -> Any:
        try:
            return _convert(value, members[each])
        except msgspec.ValidationError as error:
            raise msgspec.ValidationError(f"parameter {each!r} of listener {name}: {error}") from error

    def convert(*args: Any, **kwargs: Any) -> tuple[Sequence[Any], Mapping[str, Any]]:
        if positional and not kwargs and len(args) <= len(kinds):  # Faster than `bind`.
            return [convert_one(each, value) if each in members else value for each, value in zip(kinds, args)], {}  # noqa: B905
        try:
            bound = signature.bind(*args, **kwargs)
        except TypeError:
            return (
                args,
                kwargs,
            )  # The call raises an error that names the listener, or the listener has other parameters.
        values = bound.arguments
        for each in filter(values.__contains__, members):
            if kinds[each] is inspect.Parameter.VAR_POSITIONAL:
                values[each] = tuple(convert_one(each, value) for value in values[each])
            elif kinds[each] is inspect.Parameter.VAR_KEYWORD:
                values[each] = {key: convert_one(each, value) for key, value in values[each].items()}
            else:
                values[each] = convert_one(each, values[each])
        return bound.args, bound.kwargs

    expected = [members.get(each, (None,))[0] for each in parameters]
    plain = positional and all(each in _PLAIN for each in expected)
    return Conversion(_type_check(expected) if plain else lambda *_: False, convert)


def _type_check(expected: list[Any]) -> Callable[..., bool]:
    """Return a function that compares the types of all arguments with the expected ones."""
    # Generated, because each event of a typed listener passes here: this costs 45 ns for two arguments, a general
    # function 250 ns.
    names = [f"a{number}" for number in range(len(expected))]
    code = f"lambda {', '.join(f'{name}=missing' for name in names)}, /, *more: " + " and ".join(
        [*(f"type({name}) is t{name}" for name in names), "not more"]
    )
    check: Callable[..., bool] = eval(code, {"missing": object(), **{f"t{n}": t for n, t in zip(names, expected)}})  # noqa: B905
    return check


def _resolve(listener: Callable[..., Any], parameters: Mapping[str, inspect.Parameter]) -> dict[str, Any]:
    """Return the annotation of each parameter, or the exception that its evaluation raised."""
    function = _function_of(listener)
    names = _Names(function)
    resolved: dict[str, Any] = {}
    for each, parameter in parameters.items():
        holder: Any = types.SimpleNamespace(__annotations__={each: parameter.annotation})
        try:
            # One by one: an unknown name in one annotation must not hide the others.
            resolved[each] = typing.get_type_hints(holder, names.globals, names, include_extras=True)[each]
        except Exception as error:  # noqa: BLE001 - an annotation is code, which may raise any exception
            resolved[each] = error
    return resolved


def _function_of(listener: Callable[..., Any]) -> Any:
    """Return the function whose module and scopes the annotations of a listener refer to."""
    while True:
        if isinstance(listener, functools.partial | functools.partialmethod):
            listener = listener.func
        elif inspect.ismethod(listener):
            listener = listener.__func__
        elif hasattr(listener, "__wrapped__"):
            listener = listener.__wrapped__
        elif inspect.isclass(listener):
            return listener.__init__
        elif not inspect.isfunction(listener) and inspect.isfunction(getattr(type(listener), "__call__", None)):  # noqa: B004
            listener = type(listener).__call__
        else:
            return listener


class _Names(dict[str, Any]):
    """The names that the annotations of a function may use beside those of its module, looked up when they are used."""

    def __init__(self, function: Any) -> None:
        super().__init__()
        self.globals: dict[str, Any] = getattr(function, "__globals__", {})
        code = getattr(function, "__code__", None)
        # A closure has only the names that the function's body uses. The frame of an enclosing function has the others;
        # it is usually the one that registers the listener.
        self._scope: str = getattr(function, "__qualname__", "")
        if code is not None:
            for name, cell in zip(code.co_freevars, function.__closure__ or (), strict=False):
                try:
                    self[name] = cell.cell_contents
                except ValueError:  # Not assigned yet.
                    continue

    def __missing__(self, name: str) -> Any:
        frame: types.FrameType | None = sys._getframe(1)
        while frame is not None:
            if (
                frame.f_globals is self.globals
                and self._scope.startswith(f"{frame.f_code.co_qualname}.<locals>.")
                and name in frame.f_locals
            ):
                return frame.f_locals[name]
            frame = frame.f_back
        raise KeyError(name)


def _members(annotation: Any) -> tuple[Any, ...]:
    """Return the annotation itself, or its members if it is a union that msgspec does not support as a whole.

    Raises TypeError or ValueError if no value can be converted to it.
    """
    from msgspec import inspect as msgspec_inspect  # Imported late: most programs have no typed listeners.

    members = (annotation,)
    try:
        infos = [msgspec_inspect.type_info(annotation)]
    except TypeError:
        if typing.get_origin(annotation) not in (typing.Union, types.UnionType):
            raise
        members = typing.get_args(annotation)
        infos = [msgspec_inspect.type_info(member) for member in members]
    for info in infos:  # The list grows by the types within collections and unions.
        for name in ("item_type", "item_types", "key_type", "value_type", "types", "type"):
            inner = getattr(info, name, ())
            infos.extend(inner if isinstance(inner, tuple) else (inner,))
        if isinstance(info, msgspec_inspect.CustomType) and not _is_supported(info.cls):
            raise TypeError(
                f"no value can be converted to {info.cls.__qualname__}; use a dataclass, or annotate it with Any"
            )
    return members


def _is_supported(kind: type) -> bool:
    return kind is object or issubclass(kind, pathlib.PurePath) or hasattr(kind, "model_validate")


def _convert(value: Any, members: tuple[Any, ...]) -> Any:
    """Return ``value`` as one of the types. Raises msgspec.ValidationError."""
    errors = []
    for member in members:
        try:
            return msgspec.convert(value, member, dec_hook=_make)
        except msgspec.ValidationError as error:
            errors.append(error)
    raise errors[0]


def _make(kind: type, value: Any) -> Any:
    """Return a value of a class that msgspec does not know. Raises ValueError, TypeError."""
    # Without an import of pydantic: a class that has this method shows that it is there.
    validate = getattr(kind, "model_validate", None)
    if validate is not None:
        return validate(value)
    if issubclass(kind, pathlib.PurePath) and isinstance(value, str):
        return kind(value)
    raise TypeError(f"Expected `{kind.__qualname__}`, got `{type(value).__name__}`")


def _name_of(listener: Any) -> str:
    function = _function_of(listener)
    name: str = getattr(function, "__qualname__", "") or repr(listener)
    return name.removesuffix(".__call__").rpartition("<locals>.")[2]
