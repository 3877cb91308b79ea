"""The mutants are imported by name: by these tests, and by the processes that the checks start."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
