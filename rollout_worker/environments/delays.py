"""Steps that take time: delays of a known law, so that waiting can be studied without slow simulators.

    constant:10ms               always 10 ms
    straggler:8ms,50ms,0.05     8 ms, and 50 ms with probability 0.05
    exponential:10ms            exponential of mean 10 ms
    lognormal:10ms,0.5          lognormal of mean 10 ms; 0.5 is the deviation of its logarithm

`,slow=0.1x4` makes a tenth of the slots four times slower. `,blocking` sleeps inside the step; otherwise a
delay is scheduled: the step returns at once and its slot is not to be looked at before its time. A delay
follows from the ticket's environment seed and the step's number, so every mode and worker meets the same.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import count

import numpy as np

from protocol.errors import UserError
from protocol.tickets import action_uniforms, mix64
from rollout_worker.environments.delay_laws import Exponential, Law, Lognormal, TwoPoint

FORMS = (
    "constant:TIME, straggler:TIME,TIME,PROBABILITY, exponential:TIME or lognormal:TIME,SIGMA "
    "(TIME such as 8ms or 0.5s), then ,slow=SHARExFACTOR and ,blocking where wanted"
)

_UNITS = {"us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_MOST_SECONDS, _MOST_SIGMA, _MOST_FACTOR = 3600.0, 5.0, 1000.0
_DELAY_STREAM = np.uint64(0xD1B54A32D192ED03)
"""Sets the delays' keys apart from the seeds they are made of."""
_BLOCK_STEPS = 128


@dataclass(frozen=True, slots=True)
class StepDelay:
    """A law, the share of slots that are `slow_factor` times slower, and whether a step really sleeps."""

    law: Law
    slow_share: Fraction = Fraction(0)
    slow_factor: float = 1.0
    blocking: bool = False

    @property
    def mean_seconds(self) -> float:
        """The mean of a step in a slot picked at random."""
        return self.law.mean_seconds * (1 + float(self.slow_share) * (self.slow_factor - 1))

    @property
    def variance(self) -> float:
        """The variance of a step in a slot picked at random, in seconds²."""
        share, square = float(self.slow_share), self.law.variance + self.law.mean_seconds**2
        return square * (1 + share * (self.slow_factor**2 - 1)) - self.mean_seconds**2

    def factor(self, slot: int) -> float:
        """Return how many times slower a slot is; the slow ones are spread evenly over the numbers."""
        slow = math.floor((slot + 1) * self.slow_share) > math.floor(slot * self.slow_share)
        return self.slow_factor if slow else 1.0

    def ideal_rate(self, n: int) -> float:
        """Return the steps per second of slots 0..n-1 that never wait for each other."""
        slow = math.floor(n * self.slow_share)
        return (n - slow + slow / self.slow_factor) / self.law.mean_seconds

    def expected_maximum(self, n: int) -> float:
        """Return the mean seconds until a step of each of the slots 0..n-1 is over: what a barrier costs.

        The integral of 1 - F(x)^(n - slow) F(x / factor)^slow over x from 0, by Gauss-Legendre quadrature
        between the edges of the law; exact but for rounding.
        """
        slow, edges = math.floor(n * self.slow_share), self.law.edges()
        ends = np.unique(np.concatenate(([0.0], edges, edges * self.slow_factor)))
        nodes, weights = np.polynomial.legendre.leggauss(16)
        halves = np.diff(ends) / 2
        seconds = ((ends[:-1] + halves)[:, np.newaxis] + halves[:, np.newaxis] * nodes).ravel()
        with np.errstate(divide="ignore"):
            log_all = sum(
                many * np.log1p(-self.law.survival(seconds / factor))
                for many, factor in ((n - slow, 1.0), (slow, self.slow_factor))
                if many
            )
        return float((-np.expm1(log_all) * (halves[:, np.newaxis] * weights).ravel()).sum())

    def draws(self, seed: int, slot: int) -> Iterator[float]:
        """Yield the delays in seconds of an episode's steps, from its environment's seed."""
        key, factor = mix64(np.array([seed], np.uint64) ^ _DELAY_STREAM), self.factor(slot)
        for first in count(0, _BLOCK_STEPS):
            steps = np.arange(first, first + _BLOCK_STEPS)
            yield from (factor * self.law.quantile(action_uniforms(key, steps))).tolist()


@cache
def parse(text: str) -> StepDelay:
    """Return the delay that an expression describes; UserError with the part that is wrong, and the forms."""
    name, _, rest = text.partition(":")
    parts = rest.split(",")
    blocking = parts[-1] == "blocking"
    if blocking:
        parts.pop()
    slow = parts.pop() if parts and parts[-1].startswith("slow=") else ""
    share, factor = _slow(text, slow) if slow else (Fraction(0), 1.0)
    return StepDelay(_law(text, name, parts), share, factor, blocking)


def _law(text: str, name: str, arguments: list[str]) -> Law:
    wanted = {"constant": 1, "straggler": 3, "exponential": 1, "lognormal": 2}
    if name not in wanted:
        raise _malformed(text, f"{name!r} is no law")
    if arguments == [""] or len(arguments) != wanted[name]:
        given = 0 if arguments == [""] else len(arguments)
        raise _malformed(text, f"{name} takes {wanted[name]} values, not {given}")
    first = _seconds(text, arguments[0])
    match name:
        case "constant":
            return TwoPoint(first, first, 0.0)
        case "straggler":
            return TwoPoint(first, _seconds(text, arguments[1]), float(_share(text, arguments[2])))
        case "exponential":
            return Exponential(first)
    sigma = float(_number(text, arguments[1]))
    if not 0 < sigma <= _MOST_SIGMA:
        raise _malformed(text, f"sigma {arguments[1]} is not above 0 and at most {_MOST_SIGMA:g}")
    return Lognormal(first, sigma)


def _slow(text: str, part: str) -> tuple[Fraction, float]:
    share, times, factor = part.removeprefix("slow=").partition("x")
    if not times:
        raise _malformed(text, f"{part!r} is not slow=SHARExFACTOR such as slow=0.1x4")
    if not 1 <= (slower := float(_number(text, factor))) <= _MOST_FACTOR:
        raise _malformed(text, f"{part!r}: the factor is not between 1 and {_MOST_FACTOR:g}")
    return _share(text, share), slower


def _seconds(text: str, part: str) -> float:
    match = re.fullmatch(r"([0-9.]+)(us|µs|ms|s)", part)
    if match is None:
        raise _malformed(text, f"{part!r} is no TIME")
    if not 0 < (seconds := float(_number(text, match[1])) * _UNITS[match[2]]) <= _MOST_SECONDS:
        raise _malformed(text, f"{part!r} is not above 0 and at most an hour")
    return seconds


def _share(text: str, part: str) -> Fraction:
    if not (share := _number(text, part)) <= 1:
        raise _malformed(text, f"{part!r} is not between 0 and 1")
    return share


def _number(text: str, part: str) -> Fraction:
    """Return a decimal number, exactly: floor(n * share) must not hang on rounding."""
    if re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,12})?|\.[0-9]{1,12}", part) is None:
        raise _malformed(text, f"{part!r} is no number")
    return Fraction(part)


def _malformed(text: str, problem: str) -> UserError:
    return UserError(f"--step-delay {text}: {problem}; give {FORMS}")
