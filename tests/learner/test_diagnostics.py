import numpy as np
import pytest

from learner.diagnostics import explained_variance, staleness


def test_staleness_of_behaviour_that_cannot_be_is_finite() -> None:
    """Log-probabilities of -1e30 and of 0 for what the newest weights deem impossible."""
    for log_weights in (np.array([1e30, 0.0, -1e30]), np.full(3, -1e30), np.full(3, 1e30)):
        figures = staleness(log_weights, np.zeros(1, dtype=np.int64))
        assert all(np.isfinite(value) for value in figures.values())


def test_staleness_by_hand() -> None:
    figures = staleness(np.log([2.0, 0.5, 0.5, 1.0]), np.array([0, 1, 1, 2]))
    assert figures["lag_mean"] == 1 and figures["lag_max"] == 2
    assert figures["largest_ratio"] == pytest.approx(2)
    assert figures["effective_sample_size"] == pytest.approx(16 / 5.5 / 4)
    assert figures["behaviour_kl"] == pytest.approx((1 - np.log(2) + 2 * (np.log(2) - 0.5)) / 4)
    fresh = staleness(np.zeros(10), np.zeros(3, dtype=np.int64))
    assert fresh["effective_sample_size"] == fresh["largest_ratio"] == 1 and fresh["behaviour_kl"] == 0


def test_explained_variance() -> None:
    returns = np.array([1.0, 2.0, 3.0])
    assert explained_variance(returns, returns) == 1
    assert explained_variance(np.full(3, 2.0), returns) == pytest.approx(0)
    assert explained_variance(returns, np.ones(3)) == 0
