"""Guards that have met."""

from __future__ import annotations

import pytest
from guards import Ends


@pytest.fixture
def ends() -> Ends:
    ends = Ends()
    ends.greet()
    return ends
