import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from learner.normalisation import Moments


@given(st.lists(st.integers(1, 40), min_size=1, max_size=8), st.floats(-1e4, 1e4), st.integers(0, 2**32))
@settings(max_examples=50)
def test_merged_parts_have_the_statistics_of_the_whole(sizes: list[int], offset: float, seed: int) -> None:
    rows = np.random.default_rng(seed).standard_normal((sum(sizes), 3)) * [1, 100, 0.01] + offset
    moments = Moments.none(3)
    for part in np.split(rows, np.cumsum(sizes)[:-1]):
        moments = moments.merge(Moments.of(part))
    assert moments.count == len(rows)
    np.testing.assert_allclose(moments.mean, rows.mean(axis=0), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.squares / len(rows), rows.var(axis=0), rtol=1e-6, atol=1e-9)


def test_a_small_spread_far_from_zero_survives_float64() -> None:
    rows = 1e6 + np.random.default_rng(0).standard_normal((10_000, 1)) * 1e-2
    moments = Moments.none(1)
    for part in np.split(rows, 100):
        moments = moments.merge(Moments.of(part))
    np.testing.assert_allclose(moments.inverse_std(), 1 / rows.std(axis=0), rtol=1e-3)


def test_no_rows_and_constant_entries_scale_by_1() -> None:
    np.testing.assert_array_equal(Moments.none(2).inverse_std(), [1, 1])
    np.testing.assert_array_equal(Moments.of(np.full((5, 2), 7)).inverse_std(), [1, 1])
    assert Moments.none(2).merge(Moments.none(2)).count == 0


def test_bytes_do_not_overflow() -> None:
    rows = np.array([[255], [255], [0]], dtype=np.uint8)
    np.testing.assert_allclose(Moments.of(rows).mean, [170])
    np.testing.assert_allclose(Moments.of(rows).squares, [43350])
