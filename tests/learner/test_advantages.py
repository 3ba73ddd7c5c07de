import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from learner.advantages import generalised_advantages

Floats = NDArray[np.float64]


def slow_advantages(
    rewards: Floats,
    values: Floats,
    final_values: Floats,
    terminated: NDArray[np.bool_],
    lengths: NDArray[np.int64],
    gamma: float,
    gae_lambda: float,
) -> Floats:
    """Sum the definition, equation 16 of arXiv 1506.02438, term by term."""
    advantages = []
    start = 0
    for episode, length in enumerate(lengths):
        path = [*values[start : start + length], 0.0 if terminated[episode] else final_values[episode]]
        deltas = [rewards[start + t] + gamma * path[t + 1] - path[t] for t in range(length)]
        advantages += [
            sum((gamma * gae_lambda) ** (later - t) * deltas[later] for later in range(t, length))
            for t in range(length)
        ]
        start += length
    return np.array(advantages)


def test_a_truncated_and_a_terminated_episode_by_hand() -> None:
    # gamma 1/2, lambda 1/2. Truncated: deltas 1 + 2 - 2 = 1 and 1 + 4 - 4 = 1, advantages 1 + 1/4 and 1.
    # Terminated: delta 3 - 1 = 2, its final value of 100 is not seen.
    advantages = generalised_advantages(
        rewards=np.array([1.0, 1.0, 3.0]),
        values=np.array([2.0, 4.0, 1.0]),
        final_values=np.array([8.0, 100.0]),
        terminated=np.array([False, True]),
        lengths=np.array([2, 1]),
        gamma=0.5,
        gae_lambda=0.5,
    )
    np.testing.assert_allclose(advantages, [1.25, 1.0, 2.0])


@given(
    st.lists(st.tuples(st.integers(1, 25), st.booleans()), min_size=1, max_size=12),
    st.floats(0, 1),
    st.floats(0, 1),
    st.integers(0, 2**32),
)
@settings(max_examples=60)
def test_equals_the_definition(
    episodes: list[tuple[int, bool]], gamma: float, gae_lambda: float, seed: int
) -> None:
    random = np.random.default_rng(seed)
    lengths = np.array([length for length, _ in episodes])
    terminated = np.array([ended for _, ended in episodes])
    rewards, values = random.standard_normal((2, lengths.sum()))
    final_values = random.standard_normal(len(lengths))
    arguments = (rewards, values, final_values, terminated, lengths, gamma, gae_lambda)
    np.testing.assert_allclose(
        generalised_advantages(*arguments), slow_advantages(*arguments), rtol=1e-9, atol=1e-9
    )


def test_an_episodes_advantages_do_not_depend_on_its_neighbours() -> None:
    random = np.random.default_rng(3)
    lengths = np.array([100, 3, 500, 1, 3])
    rewards, values = random.standard_normal((2, lengths.sum()))
    final_values, terminated = random.standard_normal(5), np.array([False, True, False, True, False])
    together = generalised_advantages(rewards, values, final_values, terminated, lengths, 0.99, 0.95)
    start = 0
    for i, length in enumerate(lengths):
        span, only = slice(start, start + length), slice(i, i + 1)
        alone = generalised_advantages(
            rewards[span], values[span], final_values[only], terminated[only], lengths[only], 0.99, 0.95
        )
        np.testing.assert_array_equal(together[span], alone)
        start += length


@pytest.mark.parametrize("garbage", [1e30, np.inf, np.nan])
def test_what_stands_after_a_terminal_state_does_not_matter(garbage: float) -> None:
    def advantages(after_the_end: float) -> Floats:
        final_values, terminated = np.array([after_the_end, 5.0]), np.array([True, False])
        ones, lengths = np.ones(4), np.array([2, 2])
        return generalised_advantages(ones, ones, final_values, terminated, lengths, 0.99, 0.95)

    np.testing.assert_array_equal(advantages(garbage), advantages(0.0))


def test_lambda_1_is_the_discounted_return_less_the_value() -> None:
    rewards, values = np.array([1.0, 2.0, 3.0]), np.array([10.0, 20.0, 30.0])
    advantages = generalised_advantages(
        rewards, values, np.array([40.0]), np.array([False]), np.array([3]), 0.9, 1.0
    )
    first = 1 + 0.9 * 2 + 0.81 * 3 + 0.729 * 40
    np.testing.assert_allclose(advantages[0], first - 10)
