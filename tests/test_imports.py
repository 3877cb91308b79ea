"""Run-time imports form no circle, neither among the modules of a package nor among its folders.

Imports under `if TYPE_CHECKING:` and imports inside functions do not count: they do not run when a module is loaded.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("doorman", "remit", "plugins/zeromq/remit_zeromq", "plugins/redis/remit_redis", "plugins/nng/remit_nng")
KNOWN: list[tuple[str, ...]] = []
"""Circles of folders that are still to be removed. The list may only become shorter."""


@pytest.mark.parametrize("folder", PACKAGES)
def test_modules_form_no_circle(folder: str) -> None:
    assert circles(imports_of(ROOT / folder)) == []


def test_folders_form_no_circle_but_the_known_ones() -> None:
    found = circles(folder_imports({**imports_of(ROOT / "remit", "doorman"), **imports_of(ROOT / "doorman", "remit")}))
    assert [circle for circle in found if circle not in KNOWN] == [], "remove the new circle of folders"
    assert [circle for circle in KNOWN if circle not in found] == [], "take the circle that is gone from KNOWN"


def test_doorman_imports_two_internal_modules_of_remit() -> None:
    imported = set().union(*imports_of(ROOT / "doorman", "remit").values())
    assert {name for name in imported if name.startswith("remit.") and "._" in name} == {
        "remit._internal",
        "remit._internal_asyncio",
    }


def test_a_circle_of_modules_is_found_at_run_time_only(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        door="try:\n    import hall.wall\nexcept ImportError:\n    pass\n",
        wall="class Wall:\n    from hall import roof\n",
        roof="import hall.door\n",
    )
    assert circles(imports_of(package)) == [("hall.door", "hall.wall", "hall.roof")]
    (package / "roof.py").write_text("if TYPE_CHECKING:\n    import hall.door\n")
    assert circles(imports_of(package)) == []
    (package / "roof.py").write_text("def build():\n    import hall.door\n")
    assert circles(imports_of(package)) == []
    (package / "roof.py").write_text("if not TYPE_CHECKING:\n    import hall.door\n")
    assert circles(imports_of(package)) == [("hall.door", "hall.wall", "hall.roof")]
    (package / "roof.py").write_text("import hall\n")
    assert circles(imports_of(package)) == []


def test_a_circle_of_folders_is_found_though_no_modules_form_one(tmp_path: Path) -> None:
    package = _package(
        tmp_path,
        **{"a/x": "import hall.b.x", "b/x": "import hall.c.x", "c/x": "from hall import a, top", "c/y": ""},
        **{"a/__init__": "", "a/y": "from hall.c.y import z\nfrom hall.a import x", "top": "import hall.c.y"},
    )
    assert circles(imports_of(package)) == []
    assert circles(folder_imports(imports_of(package))) == [("hall.a", "hall.c")]
    (package / "a/y.py").write_text("")
    assert circles(folder_imports(imports_of(package))) == [("hall.a", "hall.b", "hall.c")]


def imports_of(package: Path, *siblings: str) -> dict[str, set[str]]:
    """Return the modules of a package, each with the modules of it and of its siblings that it imports at run time."""
    known = {
        _name(path, package.parent)
        for root in (package.name, *siblings)
        for path in package.parent.glob(f"{root}/**/*.py")
    }
    return {
        (module := _name(path, package.parent)): set(_imported(path, known)) - {module}
        for path in package.rglob("*.py")
    }


def folder_imports(imports: dict[str, set[str]]) -> dict[str, set[str]]:
    """Return the imports between folders below the top of a package; modules at the top do not count."""
    folders: dict[str, set[str]] = {}
    packages = {".".join(module.split(".")[:-1]) for module in imports}
    for module, others in imports.items():
        here, *there = (each if each in packages else each.rpartition(".")[0] for each in (module, *others))
        if "." in here:
            folders.setdefault(here, set()).update(each for each in there if "." in each and each != here)
    return folders


def circles(imports: dict[str, set[str]]) -> list[tuple[str, ...]]:
    """Return a shortest circle through each import, without those that contain a smaller one; empty if there is none.

    A circle starts with its first name by the alphabet; each name imports the next, and the last one the first.
    """
    while ends := {name for name in imports if not imports[name] & imports.keys()}:
        imports = {name: imports[name] - ends for name in imports.keys() - ends}
    ways = [way for name in imports for other in imports[name] if (way := _shortest_way(imports, other, name))]
    turned = {way[(at := way.index(min(way))) :] + way[:at] for way in ways}
    found = sorted(turned, key=lambda way: (len(way), way))
    return [way for at, way in enumerate(found) if not any(set(less) <= set(way) for less in found[:at])]


def _shortest_way(imports: dict[str, set[str]], start: str, goal: str) -> tuple[str, ...] | None:
    ways, seen = [(start,)], {start}
    for way in ways:
        if way[-1] == goal:
            return way
        for other in sorted((imports[way[-1]] & imports.keys()) - seen):
            seen.add(other)
            ways.append((*way, other))
    return None


def _package(at: Path, **modules: str) -> Path:
    for name, source in {"__init__": "", **modules}.items():
        path = at / f"hall/{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    return at / "hall"


def _name(path: Path, root: Path) -> str:
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def _imported(path: Path, modules: set[str]) -> Iterator[str]:
    for node in _run_on_load(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: name the package that it is imported from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in ((whole,) if whole in modules else (node.module,)) if name in modules)


def _run_on_load(node: ast.AST) -> Iterator[ast.AST]:
    """Yield the statements that run when a module is loaded."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test) in ("TYPE_CHECKING", "typing.TYPE_CHECKING"):
            yield from (each for other in child.orelse for each in (other, *_run_on_load(other)))
            continue
        yield child
        yield from _run_on_load(child)
