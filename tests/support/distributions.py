"""Distributions that are installed for the length of a test: a folder with metadata and modules."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

TRANSPORT = """
from remit.hookspecs import hookimpl
from remit.transports.memory import MemoryTransport

class Named(MemoryTransport):
    def __init__(self, scheme):
        self.scheme = scheme

@hookimpl
def remit_transport(scheme):
    return Named(scheme)
"""
"""A plugin that works, for any scheme."""


def distribution(
    folder: Path,
    name: str,
    entry_points: Mapping[str, str],
    modules: Mapping[str, str] | None = None,
    *,
    version: str = "1.0",
    requires: tuple[str, ...] = (),
) -> Path:
    """Lay out a distribution in a folder that is, or will be, on sys.path. Return the folder of its metadata."""
    info = folder / f"{name.replace('-', '_')}-{version}.dist-info"
    info.mkdir(parents=True)
    head = [f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}"]
    (info / "METADATA").write_text("\n".join([*head, *(f"Requires-Dist: {each}" for each in requires)]) + "\n")
    lines = [f"{scheme} = {module}" for scheme, module in entry_points.items()]
    (info / "entry_points.txt").write_text("\n".join(["[remit]", *lines]) + "\n")
    for module, source in (modules or {}).items():
        (folder / f"{module}.py").write_text(source)
    return info
