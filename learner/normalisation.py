"""Running mean and variance of the observations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

_VARIANCE_FLOOR = 1e-8


@dataclass(frozen=True, slots=True)
class Moments:
    """Statistics of `count` rows: their mean [k] and sum of squared deviations from it [k], float64."""

    count: float
    mean: NDArray[np.float64]
    squares: NDArray[np.float64]

    @classmethod
    def of(cls, rows: NDArray[Any]) -> Moments:
        """Return the statistics of `rows` [n, k]."""
        rows = rows.astype(np.float64)
        mean = rows.mean(axis=0)
        return cls(float(len(rows)), mean, np.square(rows - mean).sum(axis=0))

    @classmethod
    def none(cls, size: int) -> Moments:
        """Return the statistics of no rows of `size` entries."""
        return cls(0.0, np.zeros(size), np.zeros(size))

    def merge(self, other: Moments) -> Moments:
        """Return the statistics of both sets of rows (Chan, Golub, LeVeque 1983, equation 1.5)."""
        count = self.count + other.count
        if count == 0:
            return self
        shift = other.mean - self.mean
        return Moments(
            count,
            self.mean + shift * (other.count / count),
            self.squares + other.squares + np.square(shift) * (self.count * other.count / count),
        )

    def inverse_std(self) -> NDArray[np.float64]:
        """Return 1 / standard deviation, [k]; 1 for no rows, and for an entry that never changed."""
        if self.count == 0:
            return np.ones_like(self.mean)
        variance = self.squares / self.count
        return np.where(variance > _VARIANCE_FLOOR, 1 / np.sqrt(np.maximum(variance, _VARIANCE_FLOOR)), 1.0)
