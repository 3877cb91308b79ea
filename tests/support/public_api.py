"""The public API of a module as text: one line for each name and each public member, the same on each Python."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
import types
from collections.abc import Iterator
from enum import Enum
from importlib import import_module
from typing import Any, Protocol, get_args

PACKAGES = ("remit", "doorman")
SIMPLE = (type(None), bool, int, float, str, bytes)
SPECIAL = ("__enter__", "__aenter__", "__await__", "__iter__", "__aiter__", "__len__", "__contains__")
"""Methods that statements and operators call: they are public."""


class _Text(str):
    """A text that stands in a signature without quotes."""

    __slots__ = ()

    def __repr__(self) -> str:
        return str(self)


def api_of(*modules: str) -> list[str]:
    """Return the lines of what the modules export. A class has its members under its first name only."""
    lines: list[str] = []
    first: dict[int, str] = {}
    for module in modules:
        exporter = import_module(module)
        for name in sorted(getattr(exporter, "__all__", None) or _classes_of(exporter)):
            path, value = f"{module}.{name}", getattr(exporter, name)
            if inspect.isclass(value):
                known = first.setdefault(id(value), path)
                lines += [f"{path} is {known}"] if known != path else [_class_line(path, value), *_members(path, value)]
            else:
                lines.append(_line(path, value))
    return lines


def _classes_of(module: types.ModuleType) -> list[str]:
    return [
        name for name, value in vars(module).items() if inspect.isclass(value) and value.__module__ == module.__name__
    ]


def _class_line(path: str, cls: type) -> str:
    """Name a class with its bases, without those that only share our code: they may be merged or split freely."""
    shown = [base for base in cls.__bases__ if base is not object]
    shown = [base for base in shown if issubclass(base, BaseException) or not _is_ours(base)]
    return f"class {path}({', '.join(base.__name__ for base in shown)})" if shown else f"class {path}"


def _is_ours(cls: type) -> bool:
    return cls.__module__.split(".")[0] in PACKAGES


def _members(path: str, cls: type) -> Iterator[str]:
    """Yield the constructor, then each public member that a class of ours defines, in the order of their names."""
    ours = [each for each in reversed(cls.__mro__) if _is_ours(each)]
    members: dict[str, str] = {}
    for each in ours:
        for name, text in {**_annotated(each), **_assigned(each)}.items():
            members.setdefault(name, f"{path}.{name}{text}")
        for name, value in vars(each).items():
            if not isinstance(value, types.MemberDescriptorType) and not _is_field(each, name):
                members[name] = _line(f"{path}.{name}", value)
    if not issubclass(cls, Enum) and _has_constructor(cls, ours):
        yield f"{path}{_signature(cls)}"
    yield from (line for name, line in sorted(members.items()) if name[0] != "_" or name in SPECIAL)


def _has_constructor(cls: type, ours: list[type]) -> bool:
    if Protocol in cls.__bases__:
        return False
    return any(
        "__init__" in vars(each) or hasattr(each, "_fields") or hasattr(each, "__struct_fields__") for each in ours
    )


def _is_field(cls: type, name: str) -> bool:
    """Return whether a name is a field of a NamedTuple, Struct or dataclass, which `_annotated` describes."""
    fields = (
        getattr(cls, "_fields", ()) or getattr(cls, "__struct_fields__", ()) or getattr(cls, "__dataclass_fields__", ())
    )
    return name in fields


def _annotated(cls: type) -> dict[str, str]:
    return {name: f": {_annotation(value)}" for name, value in inspect.get_annotations(cls).items()}


def _assigned(cls: type) -> dict[str, str]:
    """Return the attributes that the methods of a class assign to self."""
    found: dict[str, str] = {}
    for node in ast.walk(ast.parse(textwrap.dedent(inspect.getsource(cls)))):
        if isinstance(node, ast.AnnAssign) and _of_self(node.target):
            found[node.target.attr] = f": {ast.unparse(node.annotation)}"
        elif isinstance(node, ast.Assign):
            targets = [each for target in node.targets for each in ast.walk(target) if _of_self(each)]
            found.update({target.attr: "  [attribute]" for target in targets if target.attr not in found})
    return found


def _of_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "self"


def _line(path: str, value: Any) -> str:
    """Return the line of a member, or of an exported name that is no class."""
    if isinstance(value, property):
        settable = "" if value.fset is None else ", settable"
        return f"{path} -> {_returned(value.fget)}  [property{settable}]"
    if isinstance(value, functools.cached_property):
        return f"{path} -> {_returned(value.func)}  [property]"
    if isinstance(value, classmethod | staticmethod):
        kind = type(value).__name__
        return f"{path}{_signature(value.__func__, bound=kind == 'classmethod')}  [{kind}]"
    if isinstance(value, types.FunctionType):
        words = "async " if inspect.iscoroutinefunction(value) else ""
        return f"{words}{path}{_signature(value, bound='.' in value.__qualname__)}"
    if isinstance(value, Enum):
        return f"{path} = {value.value!r}"
    if isinstance(value, SIMPLE):
        return f"{path} = {value!r}"
    union = get_args(value)
    if isinstance(value, types.UnionType) or getattr(value, "__origin__", None) is not None:
        return f"{path} = {' | '.join(getattr(each, '__name__', str(each)) for each in union)}"
    return f"{path}: {type(value).__name__}"


def _returned(function: Any) -> str:
    return _annotation(inspect.get_annotations(function).get("return", "?"))


def _signature(value: Any, *, bound: bool = False) -> str:
    signature = inspect.signature(value)
    parameters = [
        each.replace(
            annotation=each.annotation if each.annotation is each.empty else _Text(_annotation(each.annotation)),
            default=each.default if each.default is each.empty else _Text(_default(each.default)),
        )
        for each in signature.parameters.values()
    ]
    returned = inspect.Signature.empty
    if not inspect.isclass(value) and signature.return_annotation is not signature.empty:
        returned = _Text(_annotation(signature.return_annotation))
    return str(inspect.Signature(parameters[bound:], return_annotation=returned))


def _annotation(value: Any) -> str:
    value = getattr(value, "__forward_arg__", value)
    return value if isinstance(value, str) else inspect.formatannotation(value)


def _default(value: Any) -> str:
    if isinstance(value, Enum):
        return f"{type(value).__name__}.{value.name}"
    if isinstance(value, (*SIMPLE, tuple)) or value in ([], {}):
        return repr(value)
    return getattr(value, "__qualname__", "...")
