"""Figures that tell how well an update went: how stale its samples were, how much the critic knew."""

from __future__ import annotations

import numpy as np
import numpy.ma  # which np.percentile imports, when no file may be opened any more
from numpy.typing import NDArray

_LARGEST_LOG_WEIGHT = 300.0
"""Whose exponential, and the sum of many squares of that, still are finite in float64."""


def staleness(log_weights: NDArray[np.float64], lags: NDArray[np.int64]) -> dict[str, float]:
    """Describe how far the behaviour policies were from the weights at the start of the update.

    `log_weights` [N] are log(pi_proximal / pi_behaviour) of the actions played, `lags` [E] in updates. The
    effective sample size is a share of N (Kong 1992); KL(behaviour, proximal) is estimated by the mean of
    r - 1 - log r (Schulman, "Approximating KL divergence", 2020), which is never negative.
    """
    log_weights = log_weights.clip(-_LARGEST_LOG_WEIGHT, _LARGEST_LOG_WEIGHT)
    ratios = np.exp(log_weights)
    return {
        "lag_mean": float(lags.mean()),
        "lag_p95": float(np.percentile(lags, 95)),
        "lag_max": float(lags.max()),
        "effective_sample_size": float(ratios.sum() ** 2 / (len(ratios) * np.square(ratios).sum())),
        "largest_ratio": float(ratios.max()),
        "behaviour_kl": float((np.expm1(log_weights) - log_weights).mean()),
    }


def explained_variance(values: NDArray[np.floating], returns: NDArray[np.floating]) -> float:
    """Return 1 - variance of (returns - values) / variance of returns; 0 where the returns are all one."""
    variance = float(np.var(returns))
    return 1 - float(np.var(returns - values)) / variance if variance else 0.0
