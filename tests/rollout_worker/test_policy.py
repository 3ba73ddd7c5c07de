"""Inference: against a plain reference, and the same bits whatever stands beside a row."""

from __future__ import annotations

import os
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from protocol.errors import ProtocolError
from protocol.messages import Arrays
from protocol.specs import PolicySpec
from rollout_worker.environments import registry
from rollout_worker.policy import Policy

CAGE2 = registry.describe("cage2", {})
PLAIN = registry.describe("cage2", {"observation": "bits", "actions": "full"})
SPECS = (
    PolicySpec(CAGE2.inputs, CAGE2.actions, CAGE2.masked),
    PolicySpec(PLAIN.inputs, PLAIN.actions, PLAIN.masked, activation="tanh"),
    PolicySpec(inputs=4, actions=2, hidden=(), normalised=True),
    PolicySpec(inputs=9, actions=5, hidden=(33, 7, 16), activation="tanh", normalised=True, masked=True),
)


def made_up(spec: PolicySpec, seed: int = 0) -> Arrays:
    draw = np.random.default_rng(seed)
    return {name: draw.normal(0, 0.3, shape).astype(np.float32) for name, shape in spec.shapes().items()}


def rows(spec: PolicySpec, count: int, seed: int = 1) -> NDArray[Any]:
    draw = np.random.default_rng(seed)
    observations = draw.normal(0, 2, (count, spec.inputs)).astype(np.float32)
    if not spec.masked:
        return observations
    masks = draw.random((count, spec.actions)) < 0.5
    masks[np.arange(count), draw.integers(0, spec.actions, count)] = True
    return np.concatenate((observations, masks), axis=1, dtype=np.float32)


def log_softmax_reference(
    spec: PolicySpec, arrays: Arrays, observations: NDArray[Any]
) -> NDArray[np.float64]:
    wide = {name: array.astype(np.float64) for name, array in arrays.items()}
    values = observations[:, : spec.inputs].astype(np.float64)
    if spec.normalised:
        values = ((values - wide["normalisation/mean"]) * wide["normalisation/inverse_std"]).clip(-10, 10)
    for index in range(len(spec.hidden)):
        values = values @ wide[f"hidden/{index}/weight"] + wide[f"hidden/{index}/bias"]
        values = np.tanh(values) if spec.activation == "tanh" else values.clip(0)
    logits = values @ wide["logits/weight"] + wide["logits/bias"]
    if spec.masked:
        logits[observations[:, spec.inputs :] == 0] = -np.inf
    logits -= logits.max(axis=1, keepdims=True)
    return np.asarray(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))


@pytest.mark.parametrize("spec", SPECS)
def test_actions_are_the_inverse_of_the_cumulative_distribution(spec: PolicySpec) -> None:
    arrays, observations = made_up(spec), rows(spec, 301)
    uniforms = np.random.default_rng(2).random(301)
    actions, log_probs = Policy(spec, arrays).act(observations, uniforms)
    assert (actions.dtype.name, log_probs.dtype.name) == ("int64", "float32")
    expected = log_softmax_reference(spec, arrays, observations)
    np.testing.assert_allclose(log_probs, expected[np.arange(301), actions], atol=2e-5)
    cumulative = np.exp(expected).cumsum(axis=1)
    below = np.where(actions > 0, cumulative[np.arange(301), actions - 1], 0.0)
    assert (below <= uniforms + 1e-5).all() and (uniforms <= cumulative[np.arange(301), actions] + 1e-5).all()


def test_samples_have_the_frequencies_of_the_distribution() -> None:
    spec = PolicySpec(inputs=3, actions=4, masked=True)
    arrays, observation = made_up(spec), np.array([[1.0, -1.0, 0.5, 1, 0, 1, 1]])
    actions, _ = Policy(spec, arrays).act(
        observation.repeat(20_000, axis=0), np.random.default_rng(0).random(20_000)
    )
    frequencies = np.bincount(actions, minlength=4) / 20_000
    expected = np.exp(log_softmax_reference(spec, arrays, observation))[0]
    assert frequencies[1] == 0
    np.testing.assert_allclose(frequencies, expected, atol=5 * np.sqrt(0.25 / 20_000))


@pytest.mark.parametrize("uniform", [0.0, 1.0 - 2.0**-53])
def test_the_outermost_uniforms_give_the_outermost_legal_actions(uniform: float) -> None:
    spec = PolicySpec(inputs=2, actions=6, masked=True)
    observations = np.array([[0.3, 0.7, 0, 0, 1, 1, 0, 0], [9.0, 9.0, 0, 1, 1, 1, 1, 0]])
    actions, log_probs = Policy(spec, made_up(spec)).act(observations, np.full(2, uniform))
    assert actions.tolist() == ([2, 1] if uniform == 0.0 else [3, 4])
    assert np.isfinite(log_probs).all()


def test_greedy_rows_take_the_most_probable_legal_action() -> None:
    spec = SPECS[0]
    observations, greedy = rows(spec, 50), np.arange(50) % 2 == 0
    uniforms = np.random.default_rng(3).random(50)
    policy = Policy(spec, made_up(spec))
    actions, log_probs = policy.act(observations, uniforms, greedy)
    sampled, _ = policy.act(observations, uniforms)
    expected = log_softmax_reference(spec, made_up(spec), observations)
    assert (actions[greedy] == expected[greedy].argmax(axis=1)).all()
    assert (actions[~greedy] == sampled[~greedy]).all()
    np.testing.assert_allclose(log_probs[greedy], expected[greedy].max(axis=1), atol=2e-5)


def test_extreme_logits_and_a_mask_without_a_legal_action_stay_finite() -> None:
    spec = PolicySpec(inputs=1, actions=3, masked=True, hidden=())
    arrays = {"logits/weight": np.array([[3e4, -3e4, 0]], np.float32), "logits/bias": np.zeros(3, np.float32)}
    observations = np.array([[1, 1, 1, 1], [-1, 1, 1, 1], [0.5, 0, 0, 0]])
    actions, log_probs = Policy(spec, arrays).act(observations, np.array([0.5, 0.5, 0.5]))
    assert actions.tolist() == [0, 1, 1]
    np.testing.assert_allclose(log_probs, [0, 0, -np.log(3)], atol=1e-6)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"logits/bias": np.zeros(3, np.float32)}, r"float32\[3\], the policy has float32\[2\]"),
        ({"logits/bias": np.zeros(2)}, "float64"),
        ({"logits/bias": np.array([0, np.nan], np.float32)}, "not finite"),
        ({"another": np.zeros(2, np.float32)}, r"unknown \['another'\]"),
    ],
)
def test_arrays_that_are_not_those_of_the_spec_are_refused(change: Arrays, reason: str) -> None:
    spec = PolicySpec(inputs=4, actions=2)
    with pytest.raises(ProtocolError, match=reason):
        Policy(spec, {**made_up(spec), **change})
    with pytest.raises(ProtocolError, match=r"missing \['hidden/0/bias'\]"):
        Policy(spec, {name: array for name, array in made_up(spec).items() if name != "hidden/0/bias"})


def check_rows_among_neighbours() -> None:
    """Check that each row has the same bits alone, in any order and among any number of rows."""
    for spec in SPECS:
        policy, everything = Policy(spec, made_up(spec)), rows(spec, 120)
        uniforms = np.random.default_rng(4).random(120)
        logits = policy.logits(everything)
        actions, log_probs = policy.act(everything, uniforms)
        draw = np.random.default_rng(5)
        for count in [1, 2, 7, 8, 9, 31, 100, 119] * 3:
            chosen = draw.permutation(120)[:count]
            some_actions, some_log_probs = policy.act(everything[chosen], uniforms[chosen])
            assert (policy.logits(everything[chosen]) == logits[chosen]).all(), (spec, count)
            assert (some_actions == actions[chosen]).all(), (spec, count)
            assert (some_log_probs == log_probs[chosen]).all(), (spec, count)


@pytest.mark.parametrize("kernel", ["", "Haswell", "SkylakeX", "Sandybridge", "Nehalem", "Zen"])
def test_a_row_has_the_same_bits_whatever_stands_beside_it(kernel: str) -> None:
    environment = os.environ | {"OPENBLAS_CORETYPE": kernel, "OPENBLAS_NUM_THREADS": "1"}
    subprocess.run(
        [sys.executable, __file__], env=environment | {"PYTHONPATH": os.pathsep.join(sys.path)}, check=True
    )


if __name__ == "__main__":
    check_rows_among_neighbours()
