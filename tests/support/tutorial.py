"""The transport that `docs/write-a-transport.md` builds: the files that its blocks are, word for word."""

from __future__ import annotations

import re
from pathlib import Path

PAGE = Path(__file__).parents[2] / "docs" / "write-a-transport.md"
MODULE = "remit_plain/__init__.py"
BLOCK = re.compile(r"^```\w+\n# ([\w./]+\.\w+)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
"""A block whose first line names its file; those of one file are its parts, in order."""


def files() -> dict[str, str]:
    """Return the text of each file, by its path in the distribution."""
    parts: dict[str, list[str]] = {}
    for path, text in BLOCK.findall(PAGE.read_text()):
        parts.setdefault(path, []).append(text)
    return {path: "\n\n".join(texts) for path, texts in parts.items()}


def lay_out(folder: Path) -> Path:
    """Write the files into a folder, and return it."""
    for path, text in files().items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder
