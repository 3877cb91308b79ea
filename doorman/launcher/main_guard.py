"""The main guard of a script, found in its source."""

from __future__ import annotations

import ast
import os
import tokenize
from collections.abc import Iterator
from types import ModuleType
from typing import Any


def find(main: ModuleType, file: str) -> tuple[frozenset[str], frozenset[str]] | None:
    """Return the names that an import of a main module binds, and those that only its guard binds; None without guard.

    Raises OSError, SyntaxError, ValueError or ImportError if the source cannot be read.
    """
    tree = ast.parse(_source(main, file))
    guards = list(_guards(tree))
    if not guards:
        return None
    inside: set[str] = set()
    for guard, branch in guards:
        inside.update(name for statement in getattr(guard, branch) for name in _bound(statement))
        setattr(guard, branch, [])
    outside = frozenset(_bound(tree))
    return outside, frozenset(inside) - outside


def _source(main: ModuleType, file: str) -> str:
    if os.path.isfile(file):  # noqa: PTH113 - a path of the interpreter's
        with tokenize.open(file) as source:  # With the encoding that the file declares.
            return source.read()
    loader: Any = main.__loader__
    text: str | None = loader.get_source("__main__")
    if text is None:
        raise OSError(f"{file} has no source")
    return text


def _guards(node: ast.AST) -> Iterator[tuple[ast.If, str]]:
    """Yield each main guard at module level, and which of its branches only the main program runs."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and (positive := _is_guard(child.test)) is not None:
            yield child, "body" if positive else "orelse"
        elif not isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield from _guards(child)


def _is_guard(test: ast.expr) -> bool | None:
    """Return True for ``__name__ == "__main__"``, False for its negation, None for another test."""
    if isinstance(test, ast.BoolOp) and isinstance(test.op, ast.And):
        return True if any(_is_guard(part) for part in test.values) else None
    if not isinstance(test, ast.Compare) or len(test.ops) != 1 or not isinstance(test.ops[0], ast.Eq | ast.NotEq):
        return None
    sides = [test.left, test.comparators[0]]
    named = any(isinstance(side, ast.Name) and side.id == "__name__" for side in sides)
    main = any(isinstance(side, ast.Constant) and side.value == "__main__" for side in sides)
    return isinstance(test.ops[0], ast.Eq) if named and main else None


def _bound(node: ast.AST) -> Iterator[str]:
    """Yield the names that a node binds in its scope."""
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
        return
    if isinstance(node, ast.Import | ast.ImportFrom):
        yield from (alias.asname or alias.name.partition(".")[0] for alias in node.names)
    if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
        yield node.id
    for child in ast.iter_child_nodes(node):
        yield from _bound(child)
