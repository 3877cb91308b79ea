"""Imports: within a package they form no circle, so that each module can be read after those that it is made of."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGES = ("doorman", "remit", "plugins/zeromq/remit_zeromq", "plugins/redis/remit_redis", "plugins/nng/remit_nng")
"""Folders of packages; imports for type checkers and those within functions count like any other."""


@pytest.mark.parametrize("folder", PACKAGES)
def test_imports_form_no_circle(folder: str) -> None:
    assert circle(imports_of(ROOT / folder)) == []


def test_a_circle_is_found_wherever_its_imports_stand(tmp_path: Path) -> None:
    package = tmp_path / "hall"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "door.py").write_text("if TYPE_CHECKING:\n    from hall.wall import Wall\n")
    (package / "wall.py").write_text("def build():\n    from hall import roof\n")
    (package / "roof.py").write_text("import hall.door\n")
    assert set(circle(imports_of(package))) == {"hall.door", "hall.wall", "hall.roof"}
    (package / "roof.py").write_text("import hall\n")
    assert circle(imports_of(package)) == []


def imports_of(package: Path) -> dict[str, set[str]]:
    """Return which modules of its package each module imports."""
    modules = {_name(path, package): path for path in package.rglob("*.py")}
    return {
        module: {name for name in _imported(path, set(modules)) if name != module} for module, path in modules.items()
    }


def circle(imports: dict[str, set[str]]) -> list[str]:
    """Return modules each of which imports the next, and the last one the first; none if there are no such."""
    known: set[str] = set()

    def follow(module: str, way: list[str]) -> list[str]:
        if module in way:
            return way[way.index(module) :]
        if module in known:
            return []
        for other in sorted(imports[module]):
            if found := follow(other, [*way, module]):
                return found
        known.add(module)
        return []

    return next((found for module in sorted(imports) if (found := follow(module, []))), [])


def _name(path: Path, package: Path) -> str:
    parts = path.relative_to(package.parent).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def _imported(path: Path, modules: set[str]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in modules)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{path}:{node.lineno}: name the package that it is imported from"
            for alias in node.names:
                whole = f"{node.module}.{alias.name}"
                yield from (name for name in ((whole,) if whole in modules else (node.module,)) if name in modules)
