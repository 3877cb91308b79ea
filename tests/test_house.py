"""A lint of prose and shape: each figure of the code base stays within its budget.

A budget is a pair: the limit to reach, and the limit of today. A commit that improves a figure lowers the limit of
today; a commit that raises one gives its reason. `python tests/test_house.py` prints all figures, with `-v` the places.
"""

from __future__ import annotations

import ast
import functools
import io
import re
import sys
import tokenize
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).parents[1]
PROSE = {
    "nobody": r"\b(?:no|some|any|every)body\b|\bwhoever\b",
    "who": r"(?:(?:^|[.;:,(]\s+|\b(?:by|of|to|for) )(?:who(?:ever)?|what|(?:those|one) who|those that)\b)",
    "told": r"\b(?:told|tells?)\b",
    "said": r"\b(?:says?|said)\b",
    "anew": r"\b(?:anew|meanwhile|lest|thereby|henceforth|in vain|for ever|at once)\b",
}
"""Words that take the place of a technical noun or verb; each is measured per 1,000 words of prose."""
BUDGET = {  # figure: (limit to reach, limit of today)
    "nobody per 1,000 words": (0.5, 0.5),
    "who per 1,000 words": (0.5, 0.5),
    "told per 1,000 words": (0.4, 0.4),
    "said per 1,000 words": (1.5, 1.5),
    "anew per 1,000 words": (0.5, 0.5),
    "files": (165, 165),
    "lines": (27_500, 33_490),
    "lines without a comment, %": (97.0, 97.0),
    "module docstrings like 'Noun: ...'": (0, 0),
    "file names used twice": (0, 0),
    "class names used twice": (0, 0),
    "constructors of more than five collaborators": (0, 0),
    "private attributes in tests": (29, 29),
}
SHARED = {"client", "server", "errors", "aio", "cli", "worker"}
"""Names of files and classes that may occur twice, as elsewhere in the field."""
DOCUMENTED = {"_exit", "_getframe", "_replace", "_asdict", "_fields", "_make"}
"""Attributes of the standard library that are public in spite of their underscore."""


class Figure(NamedTuple):
    """A measured value, and the places that it consists of, if they are few enough to name."""

    value: float
    places: list[str] = []


@pytest.mark.parametrize("name", BUDGET)
def test_figure_is_within_its_budget(name: str) -> None:
    value, places = measured(ROOT)[name]
    assert value <= BUDGET[name][1], f"{name}: {value}, limit {BUDGET[name][1]}, to reach {BUDGET[name][0]}: {places}"


def test_no_budget_is_looser_than_its_goal() -> None:
    assert measured(ROOT).keys() == BUDGET.keys()
    assert [name for name, (goal, today) in BUDGET.items() if today < goal] == []


def test_each_figure_counts_what_it_names(tmp_path: Path) -> None:
    init = "    def __init__(self, a: Lock, b: Lock, c: Lock | None, d: 'Lock', e: list[Lock], {}) -> None: ...\n"
    sources = {
        "remit/door.py": f'"""Door: nobody is told of what it says."""\nclass Lock: ...\nclass Door:\n{init}',
        "doorman/door.py": f'"""Doors."""  # closed at once\nclass Door:\n{init}',
        "plugins/x/size.py": "from enum import Enum\nclass Base(Enum): ...\nclass Size(Base): ...\n",
        "plugins/x/tests/test_size.py": "nobody = 1\n",
        "tests/test_door.py": "door._lock\nself._door\nos._exit(1)\nsetattr(door, '_key', 1)\ndoor.__init__\n",
        "README.md": "Word " * 988 + "\n```python\nnobody\n```\n",
    }
    parameters = {"remit/door.py": "f: Lock", "doorman/door.py": "f: Callable[[Lock], None], g: Size"}
    for name, source in sources.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source.replace("{}", parameters.get(name, "")))
    figures = {name: figure.value for name, figure in measured(tmp_path).items()}
    assert [figures.pop(f"{word} per 1,000 words") for word in PROSE] == [1.0] * 5
    assert list(figures.values()) == [3, 10, 90.0, 1, 1, 1, 1, 2]


@functools.cache
def measured(root: Path) -> dict[str, Figure]:
    """Return each figure of the packages, docs and tests below a root."""
    sources = {path: path.read_text() for top in ("remit", "doorman", "plugins") for path in _modules(root / top)}
    trees = {path: ast.parse(source) for path, source in sources.items()}
    comments = {path: _comments(source) for path, source in sources.items()}
    lines = sum(source.count("\n") for source in sources.values())
    pages = [*sorted(root.glob("docs/*.md")), root / "README.md"]
    prose = "\n".join(
        [line for path in trees for line in (*_docstrings(trees[path]), *comments[path]) if "noqa" not in line]
        + [re.sub(r"```.*?```", "", page.read_text(), flags=re.S) for page in pages]
    )
    ours = [path.relative_to(root) for path in sources if root / "plugins" not in path.parents]
    riddles = [
        str(path.relative_to(root))
        for path in trees
        if re.match(r"[A-Z]\w*( \w+)?: ", ast.get_docstring(trees[path]) or "")
    ]
    crowded = list(_crowded([node for tree in trees.values() for node in _classes(tree)]))
    return {
        **{f"{name} per 1,000 words": Figure(_rate(pattern, prose)) for name, pattern in PROSE.items()},
        "files": Figure(len(sources)),
        "lines": Figure(lines),
        "lines without a comment, %": Figure(round(100 - 100 * sum(map(len, comments.values())) / lines, 1)),
        "module docstrings like 'Noun: ...'": _count(riddles),
        "file names used twice": _count(_twice((path.stem, path) for path in ours if not path.stem.startswith("__"))),
        "class names used twice": _count(
            _twice((each.name, path) for path in ours for each in _classes(trees[root / path]))
        ),
        "constructors of more than five collaborators": _count(crowded),
        "private attributes in tests": _count(
            [
                f"{path.relative_to(root)}: {name}"
                for path in sorted(root.glob("tests/**/*.py"))
                for name in _private(path)
            ]
        ),
    }


def _modules(top: Path) -> Iterator[Path]:
    yield from (path for path in sorted(top.rglob("*.py")) if not {"tests", ".venv"} & set(path.relative_to(top).parts))


def _count(places: list[str]) -> Figure:
    return Figure(len(places), places)


def _rate(pattern: str, prose: str) -> float:
    words = len(re.findall(r"[A-Za-z']+", prose))
    return round(1000 * len(re.findall(pattern, prose, re.IGNORECASE | re.MULTILINE)) / words, 1)


def _docstrings(tree: ast.Module) -> list[str]:
    expressions = [node.value for node in ast.walk(tree) if isinstance(node, ast.Expr)]
    return [each.value for each in expressions if isinstance(each, ast.Constant) and isinstance(each.value, str)]


def _comments(source: str) -> list[str]:
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return [token.string for token in tokens if token.type == tokenize.COMMENT]


def _classes(tree: ast.Module) -> list[ast.ClassDef]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.ClassDef)]


def _twice(names: Iterator[tuple[str, Path]]) -> list[str]:
    places = defaultdict(list)
    for name, path in names:
        places[name].append(path)
    return [
        f"{name}: {', '.join(map(str, at))}" for name, at in places.items() if at[1:] and name.lower() not in SHARED
    ]


def _crowded(classes: list[ast.ClassDef]) -> Iterator[str]:
    """Yield each class whose constructor takes more than five collaborators.

    A collaborator is a parameter, or a dataclass field without a default, whose annotation names a class of ours with
    behaviour of its own: no enum, frozen dataclass, NamedTuple, Struct or exception. A callback is none.
    """
    acting = {each.name for each in classes} - _values(classes)
    for each in classes:
        init = next((node for node in each.body if isinstance(node, ast.FunctionDef) and node.name == "__init__"), None)
        fields = [node.annotation for node in each.body if isinstance(node, ast.AnnAssign) and node.value is None]
        if init is not None:
            fields = [arg.annotation for arg in (*init.args.args, *init.args.kwonlyargs) if arg.annotation is not None]
        elif not any("dataclass" in ast.unparse(decorator) for decorator in each.decorator_list):
            continue
        named = [set(re.findall(r"\w+", ast.unparse(field))) for field in fields]
        others = [sorted(names & acting) for names in named if names & acting and "Callable" not in names]
        if len(others) > 5:
            yield f"{each.name}: {others}"


def _values(classes: list[ast.ClassDef]) -> set[str]:
    """Return the names of classes that are values, by their decorator, base or inherited base."""
    values = {each.name for each in classes if any("frozen=True" in ast.unparse(d) for d in each.decorator_list)}
    kinds = re.compile(r"\b(?:\w*Enum|\w*Flag|NamedTuple|Struct|TypedDict|\w*(?:Error|Exception))\b")
    bases = {each.name: " ".join(map(ast.unparse, each.bases)) for each in classes}
    values |= {name for name, text in bases.items() if kinds.search(text)}
    while more := {name for name, text in bases.items() if values & set(re.findall(r"\w+", text))} - values:
        values |= more
    return values


def _private(path: Path) -> Iterator[str]:
    """Yield each private name that a test reaches for in another object: `x._name`, or setattr(x, "_name", ...).

    The object is not self, cls or super(); the name has one leading underscore and is not DOCUMENTED. Names in setattr,
    getattr and delattr count as well, also at the end of a dotted path.
    """
    for node in ast.walk(ast.parse(path.read_text())):
        names: list[str] = []
        if isinstance(node, ast.Attribute):
            names = [node.attr] if ast.unparse(node.value) not in ("self", "cls", "super()") else []
        elif isinstance(node, ast.Call) and re.search(r"\b(?:get|set|del)attr$", ast.unparse(node.func)):
            texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant)]
            names = [text.rpartition(".")[2] for text in texts if isinstance(text, str)]
        yield from (name for name in names if re.match(r"_[^_]", name) and name not in DOCUMENTED)


if __name__ == "__main__":
    for name, (value, places) in measured(ROOT).items():
        print(f"{name:45} {value:8} of {BUDGET[name][1]:8}, to reach {BUDGET[name][0]:8}")
        for place in places if "-v" in sys.argv else []:
            print(f"    {place}")
