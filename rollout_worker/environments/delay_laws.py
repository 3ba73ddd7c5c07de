"""Distributions of the seconds that a step may take."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

_NORMAL = NormalDist()


class Law(Protocol):
    """A distribution of seconds."""

    @property
    def mean_seconds(self) -> float:
        """Its mean."""
        ...

    @property
    def variance(self) -> float:
        """Its variance in seconds²."""
        ...

    def quantile(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the inverse of the distribution function at uniforms in [0, 1), in seconds."""
        ...

    def survival(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the probability of more than so many seconds."""
        ...

    def edges(self) -> NDArray[np.float64]:
        """Return ascending seconds from where `survival` is 1 to where it is 0; smooth in between."""
        ...


@dataclass(frozen=True, slots=True)
class TwoPoint:
    """`usual` seconds, and `rare` seconds with a probability."""

    usual: float
    rare: float
    probability: float

    @property
    def mean_seconds(self) -> float:
        """Its mean."""
        return self.usual + self.probability * (self.rare - self.usual)

    @property
    def variance(self) -> float:
        """Its variance in seconds²."""
        return self.probability * (1 - self.probability) * (self.rare - self.usual) ** 2

    def quantile(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the rare seconds for the largest uniforms."""
        return np.where(uniforms < 1 - self.probability, self.usual, self.rare)

    def survival(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the weight of what is above."""
        return (1 - self.probability) * (seconds < self.usual) + self.probability * (seconds < self.rare)

    def edges(self) -> NDArray[np.float64]:
        """Return both points."""
        return np.sort([self.usual, self.rare])


@dataclass(frozen=True, slots=True)
class Exponential:
    """The memoryless law."""

    mean_seconds: float

    @property
    def variance(self) -> float:
        """Its variance in seconds²."""
        return self.mean_seconds**2

    def quantile(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return -mean log(1 - u)."""
        return -self.mean_seconds * np.log1p(-uniforms)

    def survival(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return exp(-x / mean)."""
        return np.exp(-seconds / self.mean_seconds)

    def edges(self) -> NDArray[np.float64]:
        """Return a geometric grid; exp(-80) is left out beyond it."""
        return self.mean_seconds * np.geomspace(1e-20, 80, 257)


@dataclass(frozen=True, slots=True)
class Lognormal:
    """Its logarithm is normal with deviation `sigma`."""

    mean_seconds: float
    sigma: float

    @property
    def variance(self) -> float:
        """Its variance in seconds²."""
        return self.mean_seconds**2 * math.expm1(self.sigma**2)

    def quantile(self, uniforms: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return exp(mu + sigma z); a uniform of 0 counts as 2^-54."""
        normal = [_NORMAL.inv_cdf(max(uniform, 2.0**-54)) for uniform in uniforms.tolist()]
        return self._median * np.exp(self.sigma * np.array(normal))

    def survival(self, seconds: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the normal law's upper tail at log(x / median) / sigma."""
        with np.errstate(divide="ignore"):
            depth = np.log(seconds / self._median) / (self.sigma * math.sqrt(2))
        return np.array([0.5 * math.erfc(value) for value in depth.tolist()])

    def edges(self) -> NDArray[np.float64]:
        """Return a grid of 12 deviations to either side."""
        return self._median * np.exp(self.sigma * np.linspace(-12, 12, 257))

    @property
    def _median(self) -> float:
        return self.mean_seconds * math.exp(-(self.sigma**2) / 2)
