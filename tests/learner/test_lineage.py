"""What a run descends from."""

from __future__ import annotations

import pytest

from learner.lineage import Lineage


def test_a_lineage_accepts_what_survived() -> None:
    """(1: up to 100) was restarted as 3, which is at 105; incarnation 2 left nothing."""
    lineage = Lineage([(1, 100)], 3, 105)
    assert lineage.accepts(1, 100) and not lineage.accepts(1, 101)
    assert not lineage.accepts(2, 50)
    assert lineage.accepts(3, 99), "inherited weights, served under the new incarnation's name"
    assert lineage.accepts(3, 105) and not lineage.accepts(3, 106)
    assert lineage.entries() == ((1, 100), (3, 105))


def test_an_incarnation_follows_its_ancestors() -> None:
    with pytest.raises(ValueError, match="incarnation 2 does not follow"):
        Lineage([(1, 5), (2, 9)], 2, 9)
