"""The two programs of the README run as processes of their own, and the event arrives."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
DEADLINE = 60.0


def test_the_event_of_the_client_program_reaches_the_server_program(short_path: Path) -> None:
    programs = re.findall(r"^```python\n# (\w+\.py)\n(.*?)^```$", (ROOT / "README.md").read_text(), re.M | re.S)
    assert [name for name, _ in programs] == ["server.py", "client.py"]
    for name, source in programs:
        (short_path / name).write_text(source.replace("/tmp/", f"{short_path}/"))
    command = [sys.executable, "-u"]
    with subprocess.Popen([*command, short_path / "server.py"], stdout=subprocess.PIPE, cwd=ROOT, text=True) as server:
        try:
            subprocess.run([*command, short_path / "client.py"], timeout=DEADLINE, check=True, cwd=ROOT)
            assert server.stdout is not None
            assert server.stdout.readline() == "hello world\n"
        finally:
            server.kill()
