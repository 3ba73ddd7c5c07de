import os
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from learner.config import PPOConfig
from learner.episode_fault import LOWEST_LOG_PROB
from learner.ppo import UpdateAbandoned
from learner.trainer import Trainer
from protocol.errors import UserError
from protocol.messages import LARGEST
from protocol.specs import PolicySpec
from tests.learner.conftest import EpisodeMaker

SPEC = PolicySpec(6, 4, masked=True, hidden=(8, 8), normalised=True)
CONFIG = PPOConfig(minibatch_steps=20)
LENGTHS = [20, 5, 30, 11]

Arrays = Mapping[str, NDArray[Any]]


def make_trainer(seed: int = 1, spec: PolicySpec = SPEC, config: PPOConfig = CONFIG) -> Trainer:
    return Trainer(spec, config, seed, updates=10)


def assert_same_bits(one: Trainer, other: Trainer) -> None:
    (arrays, plain), (other_arrays, other_plain) = one.state(), other.state()
    assert plain == other_plain
    assert arrays.keys() == other_arrays.keys()
    for name, array in arrays.items():
        assert array.tobytes() == other_arrays[name].tobytes(), name


def test_equal_trainings_hold_the_same_bits_whatever_the_order_of_arrival(
    make_episodes: EpisodeMaker,
) -> None:
    one, other = make_trainer(), make_trainer()
    for number in range(3):
        episodes = make_episodes(SPEC, LENGTHS, seed=number, version=number)
        one.train(episodes)
        other.train(episodes[::-1])
    assert one.update == 3
    assert_same_bits(one, other)


_TWO_THREADS = """
import hashlib, numpy as np, torch
from benchmarks.update import CAGE2, synthetic_episodes
from learner.episode_fault import LOWEST_LOG_PROB
from learner.config import PPOConfig
from learner.trainer import Trainer
torch.set_num_threads(2)
trainer = Trainer(CAGE2, PPOConfig(minibatch_steps=1000, epochs=2), seed=1, updates=2)
trainer.train(synthetic_episodes(CAGE2, 20))
arrays = trainer.state()[0]
print(hashlib.sha256(b"".join(arrays[name].tobytes() for name in sorted(arrays))).hexdigest())
"""


def test_two_processes_of_two_threads_give_the_same_bits() -> None:
    passive = os.environ | {"OMP_WAIT_POLICY": "passive", "OMP_NUM_THREADS": "2"}
    command = [sys.executable, "-c", _TWO_THREADS]
    hashes = {subprocess.run(command, env=passive, capture_output=True, check=True).stdout for _ in range(2)}
    assert len(hashes) == 1


def test_a_loaded_state_goes_on_as_the_original(make_episodes: EpisodeMaker) -> None:
    original, loaded = make_trainer(), make_trainer(seed=1)
    original.train(make_episodes(SPEC, LENGTHS))
    arrays, plain = original.state()
    original.train(make_episodes(SPEC, LENGTHS, seed=5))  # the state taken is a copy
    loaded.load_state(arrays, plain)
    loaded.train(make_episodes(SPEC, LENGTHS, seed=5))
    assert_same_bits(original, loaded)


@pytest.mark.parametrize("patience", [0, 4])
def test_an_abandoned_update_leaves_no_trace(make_episodes: EpisodeMaker, patience: int) -> None:
    trainer, untouched = make_trainer(), make_trainer()
    for each in (trainer, untouched):
        each.train(make_episodes(SPEC, LENGTHS))
    answers = iter([False] * patience + [True])
    with pytest.raises(UpdateAbandoned):
        trainer.train(make_episodes(SPEC, LENGTHS, seed=2), should_stop=lambda: next(answers))
    assert_same_bits(trainer, untouched)
    for each in (trainer, untouched):
        each.train(make_episodes(SPEC, LENGTHS, seed=3))
    assert_same_bits(trainer, untouched)


def test_divergence_is_told_and_undone(make_episodes: EpisodeMaker) -> None:
    trainer, untouched = make_trainer(), make_trainer()
    (episode,) = make_episodes(SPEC, [30])
    episode.rewards[3] = np.nan
    with pytest.raises(UserError, match="diverged in update 0"):
        trainer.train([episode])
    assert_same_bits(trainer, untouched)


def test_figures_describe_the_batch(make_episodes: EpisodeMaker) -> None:
    episodes = make_episodes(SPEC, LENGTHS)
    figures = make_trainer().train(episodes)
    returns = [episode.rewards.sum() for episode in episodes]
    assert figures["return_mean"] == pytest.approx(np.mean(returns), rel=1e-5)
    assert figures["return_min"] == pytest.approx(min(returns), rel=1e-5)
    assert (figures["steps"], figures["episodes"], figures["episode_steps_mean"]) == (66, 4, 16.5)
    assert figures["gradient_steps"] == 6
    assert all(np.isfinite(value) for value in figures.values())


@pytest.mark.parametrize("scale", [LARGEST, -LARGEST])
def test_the_largest_values_that_an_episode_may_hold_leave_all_figures_finite(
    make_episodes: EpisodeMaker, scale: float
) -> None:
    """Rewards of +-1e9, observations too, and the lowest log-probabilities."""
    spec = PolicySpec(6, 4, hidden=(8, 8), activation="relu")
    trainer, episodes = make_trainer(spec=spec), make_episodes(spec, LENGTHS)
    for episode in episodes:
        episode.rewards[:] = scale
        episode.observations[0] = scale
        episode.log_probs[0] = LOWEST_LOG_PROB
    figures = trainer.train(episodes)
    assert all(np.isfinite(value) for value in figures.values()), figures


def test_policy_arrays_carry_the_statistics_they_were_trained_with(make_episodes: EpisodeMaker) -> None:
    trainer, episodes = make_trainer(), make_episodes(SPEC, LENGTHS)
    trainer.train(episodes)
    seen = np.concatenate([episode.observations[:-1, : SPEC.inputs] for episode in episodes])
    np.testing.assert_allclose(trainer.policy_arrays()["normalisation/mean"], seen.mean(axis=0), rtol=1e-5)


def test_init_from_takes_weights_and_statistics_only(make_episodes: EpisodeMaker) -> None:
    source, target = make_trainer(), make_trainer(seed=2)
    source.train(make_episodes(SPEC, LENGTHS))
    target.load_weights(source.state()[0])
    assert target.update == 0
    assert not any(optimiser.state for optimiser in target.optimisers)
    for name, array in source.policy_arrays().items():
        np.testing.assert_array_equal(target.policy_arrays()[name], array)


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (PolicySpec(6, 4, masked=True, hidden=(8, 9), normalised=True), r"hidden/1/weight is \[8, 9\]"),
        (PolicySpec(6, 4, masked=True, hidden=(8,), normalised=True), "logits/weight is|no array"),
        (PolicySpec(6, 4, masked=True, hidden=(8, 8)), "no array normalisation/count"),
    ],
)
def test_weights_of_another_policy_are_refused_and_leave_all_as_it_was(
    spec: PolicySpec, message: str
) -> None:
    trainer = make_trainer()
    with pytest.raises(UserError, match=message):
        trainer.load_weights(make_trainer(seed=2, spec=spec).state()[0])
    assert_same_bits(trainer, make_trainer())
