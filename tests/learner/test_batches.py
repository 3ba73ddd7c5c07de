from dataclasses import fields, replace

import numpy as np
import pytest

from learner.batches import Batch, make_batch
from protocol.messages import Version
from protocol.specs import PolicySpec
from tests.learner.conftest import EpisodeMaker

SPEC = PolicySpec(5, 3)


def assert_equal(one: Batch, other: Batch) -> None:
    for field in fields(Batch):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_episodes_lie_end_to_end_in_ticket_order(make_episodes: EpisodeMaker) -> None:
    episodes = make_episodes(SPEC, [4, 1, 7])
    batch = make_batch([episodes[2], episodes[0], episodes[1]])
    assert_equal(batch, make_batch(episodes))
    np.testing.assert_array_equal(batch.lengths, [4, 1, 7])
    np.testing.assert_array_equal(batch.terminated, [False, True, False])
    np.testing.assert_array_equal(batch.observations[4], episodes[1].observations[0])
    np.testing.assert_array_equal(batch.observations[5:], episodes[2].observations[:-1])
    np.testing.assert_array_equal(batch.final_observations, [e.observations[-1] for e in episodes])
    np.testing.assert_array_equal(batch.actions, np.concatenate([e.actions for e in episodes]))
    np.testing.assert_array_equal(batch.log_probs[:4], episodes[0].log_probs)
    np.testing.assert_allclose(batch.returns, [e.rewards.sum() for e in episodes], rtol=1e-5)


def test_versions_belong_to_their_episodes(make_episodes: EpisodeMaker) -> None:
    episodes = make_episodes(SPEC, [2, 2])
    batch = make_batch([replace(episodes[1], version=Version(3, 9)), episodes[0]])
    np.testing.assert_array_equal(batch.versions, [0, 9])


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("uint8", "uint8"),
        ("float32", "float32"),
        ("float64", "float32"),
        ("int64", "float32"),
        ("bool", "float32"),
    ],
)
def test_observations_become_what_torch_gathers(make_episodes: EpisodeMaker, given: str, kept: str) -> None:
    (episode,) = make_episodes(SPEC, [3])
    observations = (episode.observations > 0).astype(given)
    batch = make_batch([replace(episode, observations=observations)])
    assert batch.observations.dtype == batch.final_observations.dtype == kept
    np.testing.assert_array_equal(batch.observations, observations[:-1].astype(kept))


def test_read_only_and_unaligned_arrays_are_copied(make_episodes: EpisodeMaker) -> None:
    (episode,) = make_episodes(SPEC, [3])
    frame = b"x" + episode.rewards.tobytes()
    rewards = np.frombuffer(frame, dtype=np.float32, offset=1)
    batch = make_batch([replace(episode, rewards=rewards)])
    assert batch.rewards.flags.aligned and batch.rewards.flags.writeable
    np.testing.assert_array_equal(batch.rewards, episode.rewards)


@pytest.mark.parametrize("lengths", [[], [3, 0]])
def test_a_batch_without_steps_is_refused(make_episodes: EpisodeMaker, lengths: list[int]) -> None:
    with pytest.raises(ValueError, match="at least one"):
        make_batch(make_episodes(SPEC, lengths))
