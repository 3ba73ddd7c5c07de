from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.end_to_end.fleet_processes import Fleet


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[Fleet]:
    """Give a test a fleet of its own."""
    fleet = Fleet(tmp_path)
    yield fleet
    fleet.close()
