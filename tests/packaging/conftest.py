"""Wheels built once for the session, and environments that hold nothing but them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path

import pytest
import tutorial

ROOT = Path(__file__).parents[2]
STRANGER = "remit-plain"
"""The distribution that the page on writing a transport builds."""
PROJECTS = (ROOT, *sorted(path.parent for path in ROOT.glob("plugins/*/pyproject.toml")))
SLOW = 300.0
"""Seconds for a tool that may have to download first."""


class Environment:
    """A virtual environment, and how to run programs in it that know nothing of this checkout."""

    def __init__(self, folder: Path) -> None:
        self.bin = folder / "bin"
        self.python = self.bin / "python"
        self.folder = folder

    def command(self, *words: str, path: Path | None = None) -> tuple[list[str], dict[str, str], Path]:
        """Return what to start, its variables and its working directory; ``path`` is put on sys.path."""
        variables = {name: text for name, text in os.environ.items() if not name.startswith(("PYTHON", "REMIT"))}
        if path is not None:
            variables["PYTHONPATH"] = str(path)
        return [str(self.bin / words[0]), *words[1:]], variables, self.folder

    def run(self, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
        """Run a program of this environment to its end."""
        command, variables, folder = self.command(*words, path=path)
        return subprocess.run(
            command, env=variables, cwd=folder, capture_output=True, text=True, timeout=60, check=False
        )

    def start(self, *words: str) -> subprocess.Popen[str]:
        """Start a program of this environment."""
        command, variables, folder = self.command(*words)
        return subprocess.Popen(
            command, env=variables, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )


def uv() -> str | None:
    """Return the uv beside this Python, or any other; without it, `build` and `pip` do the same, slower."""
    return shutil.which("uv", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}")


def tool(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=SLOW, check=False)
    assert done.returncode == 0, f"{' '.join(words)}\n{done.stdout}{done.stderr}"


def build(project: Path, folder: Path) -> None:
    if found := uv():
        tool(found, "build", "--quiet", "--wheel", "--python", sys.executable, "--out-dir", str(folder), str(project))
    else:
        tool(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(project))


def environment(folder: Path, wheels: Sequence[Path]) -> Environment:
    if found := uv():
        tool(found, "venv", "--quiet", "--python", sys.executable, str(folder))
        made = Environment(folder)
        tool(found, "pip", "install", "--quiet", "--python", str(made.python), *map(str, wheels))
    else:
        venv.create(folder, with_pip=True, symlinks=True)
        made = Environment(folder)
        tool(str(made.python), "-m", "pip", "install", "--quiet", *map(str, wheels))
    return made


@pytest.fixture(scope="session")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The wheels of this project and of the stranger, by distribution."""
    folder = tmp_path_factory.mktemp("wheels")
    for project in (*PROJECTS, tutorial.lay_out(tmp_path_factory.mktemp(STRANGER))):
        build(project, folder)
    return {path.name.partition("-")[0].replace("_", "-"): path for path in folder.glob("*.whl")}


@pytest.fixture(scope="session")
def bare(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with remit and nothing else."""
    return environment(tmp_path_factory.mktemp("bare"), [wheels["remit"]])


@pytest.fixture(scope="session")
def equipped(wheels: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Environment:
    """An environment with remit and the stranger's transport."""
    return environment(tmp_path_factory.mktemp("equipped"), [wheels["remit"], wheels[STRANGER]])
