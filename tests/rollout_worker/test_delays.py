"""Delays follow law and ticket, and what is malformed is told."""

from __future__ import annotations

from itertools import islice

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from protocol.errors import UserError
from rollout_worker.environments.delays import StepDelay, parse

LAWS = {
    "constant:10ms": (0.010, 0.0),
    "straggler:8ms,50ms,0.05": (0.0101, 0.05 * 0.95 * 0.042**2),
    "exponential:10ms": (0.010, 1e-4),
    "lognormal:10ms,0.5": (0.010, 1e-4 * np.expm1(0.25)),
    "exponential:.5s,slow=0.25x3": (0.75, 0.75 * 2 * 0.5**2 + 0.25 * 2 * 1.5**2 - 0.75**2),
    "lognormal:200us,1.5,slow=0.1x4,blocking": (2.6e-4, 4e-8 * np.exp(2.25) * 2.5 - 2.6e-4**2),
}
"""Mean seconds and variance."""


def sample(delay: StepDelay, slot: int, seed: int, count: int) -> NDArray[np.float64]:
    return np.fromiter(islice(delay.draws(seed, slot), count), np.float64, count)


@pytest.mark.parametrize("text", LAWS)
def test_draws_follow_the_law(text: str) -> None:
    delay = parse(text)
    mean, variance = LAWS[text]
    assert delay.mean_seconds == pytest.approx(mean) and delay.variance == pytest.approx(variance, abs=1e-12)
    count = 20_000
    draws = sample(delay, 0, 7, count)
    assert draws.mean() == pytest.approx(delay.law.mean_seconds, rel=0.05)
    grid = np.quantile(draws, np.linspace(0, 1, 50))
    below = np.searchsorted(np.sort(draws), grid, "right") / count
    assert np.abs(below - (1 - delay.law.survival(grid))).max() < 1.95 / np.sqrt(count)  # KS, 0.1 %


@pytest.mark.parametrize("text", LAWS)
@pytest.mark.parametrize("n", [1, 10, 100])
def test_the_expected_maximum_is_that_of_a_simulation(text: str, n: int) -> None:
    delay, rounds = parse(text), 5000
    uniforms = np.random.default_rng(n).random(rounds * n)
    factors = np.array([delay.factor(slot) for slot in range(n)])
    maxima = (delay.law.quantile(uniforms).reshape(rounds, n) * factors).max(axis=1)
    error = 4.5 * maxima.std() / np.sqrt(rounds) + 1e-12
    assert delay.expected_maximum(n) == pytest.approx(maxima.mean(), abs=error)


def test_the_expected_maximum_is_exact_where_it_has_a_formula() -> None:
    assert parse("constant:10ms").expected_maximum(1000) == pytest.approx(0.010, rel=1e-13)
    bound = 0.050 - 0.042 * 0.95**100
    assert parse("straggler:8ms,50ms,0.05").expected_maximum(100) == pytest.approx(bound, rel=1e-13)
    harmonic = sum(1 / k for k in range(1, 101))
    assert parse("exponential:2s").expected_maximum(100) == pytest.approx(2 * harmonic, rel=1e-12)
    for sigma in (0.01, 0.5, 2):
        assert parse(f"lognormal:3s,{sigma}").expected_maximum(1) == pytest.approx(3, rel=1e-12)
    assert parse("constant:10ms,slow=0.01x4").expected_maximum(99) == pytest.approx(0.010, rel=1e-13)
    assert parse("constant:10ms,slow=0.01x4").expected_maximum(100) == pytest.approx(0.040, rel=1e-13)


def test_a_share_of_the_slots_is_slow_and_by_its_number() -> None:
    delay = parse("constant:10ms,slow=0.3x2")
    assert [slot for slot in range(10) if delay.factor(slot) == 2] == [3, 6, 9]
    assert delay.ideal_rate(10) == pytest.approx(7 / 0.010 + 3 / 0.020)
    assert sum(parse("constant:1s,slow=0.29x2").factor(slot) - 1 for slot in range(100)) == 29
    assert (sample(delay, 3, 1, 5) == 0.020).all() and (sample(delay, 4, 1, 5) == 0.010).all()


def test_delays_depend_on_the_seed_and_the_step_alone() -> None:
    delay = parse("exponential:10ms")
    assert (sample(delay, 0, 5, 300) == sample(delay, 9, 5, 300)).all()
    assert len(np.unique(sample(delay, 0, 5, 300))) == 300
    assert not (sample(delay, 0, 6, 300) == sample(delay, 0, 5, 300)).any()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "'' is no law"),
        ("uniform:1ms", "'uniform' is no law"),
        ("constant", "constant takes 1 values, not 0"),
        ("constant:10", "'10' is no TIME"),
        ("constant:1e3ms", "'1e3ms' is no TIME"),
        ("constant:1.2.3ms", "'1.2.3' is no number"),
        ("constant:-1ms", "'-1ms' is no TIME"),
        ("constant:0ms", "'0ms' is not above 0"),
        ("constant:2000000ms,5000s", "constant takes 1 values, not 2"),
        ("exponential:3601s", "at most an hour"),
        ("straggler:8ms,50ms", "straggler takes 3 values, not 2"),
        ("straggler:8ms,50ms,1.5", "'1.5' is not between 0 and 1"),
        ("straggler:8ms,50ms,nan", "'nan' is no number"),
        ("straggler:8ms,50ms,", "'' is no number"),
        ("lognormal:10ms,0", "sigma 0 is not above 0"),
        ("constant:10ms,slow=0.1", "'slow=0.1' is not slow=SHARExFACTOR"),
        ("constant:10ms,slow=0.1x0.5", "the factor is not between 1 and 1000"),
        ("constant:10ms,slow=2x2", "'2' is not between 0 and 1"),
        ("constant:10ms,blocking,slow=0.1x4", "constant takes 1 values, not 2"),
        ("constant:10ms,sleeping", "constant takes 1 values, not 2"),
    ],
)
def test_a_malformed_delay_is_told_with_its_part_and_the_forms(text: str, problem: str) -> None:
    with pytest.raises(UserError) as caught:
        parse(text)
    told = str(caught.value)
    assert told.startswith(f"--step-delay {text}: ") and problem in told
    assert "straggler:TIME,TIME,PROBABILITY" in told and "\n" not in told


@given(st.text("constantstraggler:,.=x0123456789mµus") | st.text())
def test_no_text_does_worse_than_a_user_error(text: str) -> None:
    try:
        assert 0 < parse(text).mean_seconds < np.inf
    except UserError as error:
        assert text in str(error)
