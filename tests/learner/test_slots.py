"""Slots of synchronous mode: dealt evenly, in order, and left where their episodes are."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from learner.slots import NOBODY, deal


@given(
    owners=st.lists(st.integers(NOBODY, 4), min_size=1, max_size=30),
    fixed=st.lists(st.booleans(), min_size=30, max_size=30),
    present=st.permutations(range(5)).flatmap(lambda p: st.integers(0, 5).map(lambda n: p[:n])),
)
def test_dealing_is_even_and_leaves_what_is_fixed(
    owners: list[int], fixed: list[bool], present: list[int]
) -> None:
    hosts, keep = np.array(owners), np.array(fixed[: len(owners)])
    dealt = deal(hosts, keep, present)
    if not present:
        assert (dealt == NOBODY).all()
        return
    stays = keep & np.isin(hosts, present)
    assert (dealt[stays] == hosts[stays]).all()
    assert np.isin(dealt, present).all()
    counts = [int((dealt == host).sum()) for host in present]
    fair = -(-len(owners) // len(present))
    for host, count in zip(present, counts, strict=True):
        assert count <= max(fair, int((stays & (hosts == host)).sum()))
    if not stays.any():
        assert counts == sorted(counts, reverse=True) and counts[0] - counts[-1] <= 1
        order = [present.index(host) for host in dealt.tolist()]
        assert order == sorted(order), "contiguous, in the order of arrival"
