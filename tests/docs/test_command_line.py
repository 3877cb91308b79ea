"""Each console block of the command-line page runs in a shell and prints the output on the page."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "command-line.md"
BLOCKS = re.findall(r"^```console\n(.*?)^```$", PAGE.read_text(), re.MULTILINE | re.DOTALL)
DEADLINE = 60.0
"""Seconds for one command line."""


def typed(block: str) -> list[tuple[str, str]]:
    """Return the command lines of a block with their output; ``...`` stands for any text."""
    return [(command, output) for command, output in re.findall(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)]


def pattern(output: str) -> str:
    """Return a pattern for the output; columns may be wider than on the page, as for a longer pid."""
    return re.sub(r"(\\ )+", " +", re.escape(output)).replace(r"\.\.\.", ".*")


@pytest.mark.parametrize("block", BLOCKS, ids=[typed(block)[0][0][:30] for block in BLOCKS])
def test_a_console_block_prints_its_output(block: str, tmp_path: Path, short_path: Path) -> None:
    programs = short_path / "bin"
    programs.mkdir()
    for name in ("doorman", "remit"):
        program = programs / name
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m {name} "$@"\n')
        program.chmod(0o755)
    environment = {
        **os.environ,
        "PATH": f"{programs}:{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_RUNTIME_DIR": str(short_path),
    }
    for command, output in typed(block):
        done = subprocess.run(
            ["bash", "-c", f"exec 2>&1; {command}"],
            stdout=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            cwd=tmp_path,
            env=environment,
            text=True,
            timeout=DEADLINE,
            check=False,
        )
        assert re.fullmatch(pattern(output), done.stdout), f"$ {command}\n{done.stdout}"
