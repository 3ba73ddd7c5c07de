"""Gymnasium environments as slots, and environments by name."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces as gym_spaces

from protocol.errors import UserError
from protocol.specs import EnvironmentSpec, Spaces
from rollout_worker.environments import registry
from rollout_worker.environments.gymnasium_slots import GymnasiumSlots
from rollout_worker.environments.slots import SlotFailures


class Room(gymnasium.Env[Any, Any]):
    """A masked environment with actions 3 to 6: 3 counts up, 4 ends, 5 is illegal, 6 raises."""

    observation_space = gym_spaces.Dict(
        observation=gym_spaces.Tuple((gym_spaces.Discrete(3), gym_spaces.Box(-1, 1, (2, 2), np.float64))),
        action_mask=gym_spaces.MultiBinary(4),
    )
    action_space = gym_spaces.Discrete(4, start=3)
    made = closed = 0

    def __init__(self, end: float = 1.0) -> None:
        Room.made += 1
        self.end, self.count = end, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.count = (options or {}).get("count", 0)
        return self.shown(), {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if action == 6:
            raise OSError("the room is gone")
        self.count += 1
        return self.shown(), self.end * (action == 4), action == 4, False, {}

    def shown(self) -> dict[str, Any]:
        noise = self.np_random.random((2, 2))
        return {"observation": (self.count % 3, noise), "action_mask": np.array([1, 1, 0, 1], np.int8)}

    def close(self) -> None:
        Room.closed += 1


class Nowhere(Room):
    observation_space = gym_spaces.Graph(gym_spaces.Discrete(2), None)  # type: ignore[assignment]  # no flat size


@pytest.fixture(autouse=True)
def rooms() -> Iterator[None]:
    gymnasium.register("Room-v0", lambda **options: Room(**options))
    gymnasium.register("Nowhere-v0", lambda **options: Nowhere(**options), max_episode_steps=3)
    Room.made = Room.closed = 0
    yield
    del gymnasium.registry["Room-v0"], gymnasium.registry["Nowhere-v0"]


def slots_and_seeds(*slots: int) -> tuple[Any, Any, list[dict[str, Any]]]:
    return np.array(slots), np.array(slots, np.uint64) + np.uint64(2**63), [{} for _ in slots]


def test_spaces_are_flattened_and_dtypes_narrowed() -> None:
    assert registry.describe("CartPole-v1", {}) == Spaces(4, "float32", 2, False, 500)
    assert registry.describe("CartPole-v1", {}, 1000).max_episode_steps == 1000
    assert registry.describe("Taxi-v4", {}) == Spaces(500, "uint8", 6, False, 200)
    assert registry.describe("Room-v0", {}, 9) == Spaces(3 + 4 + 4, "float32", 4, True, 9)


def test_slots_step_like_the_environment_itself_and_truncate() -> None:
    batch = GymnasiumSlots("CartPole-v1", 3, {}, 10)
    slots, seeds, scenarios = slots_and_seeds(2, 0)
    scenarios[1] = {"episode_length": 4}
    observations = batch.reset(slots, seeds, scenarios)
    singles = [gymnasium.make("CartPole-v1") for _ in range(2)]
    expected = [
        single.reset(seed=int(seed) & 0x7FFFFFFF)[0] for single, seed in zip(singles, seeds, strict=True)
    ]
    assert (observations == expected).all() and observations.dtype == np.float32
    for step in range(4):
        actions = np.array([step % 2, 1 - step % 2])
        observations, rewards, terminated, truncated = batch.step(slots, actions)
        expected = [single.step(int(a))[0] for single, a in zip(singles, actions, strict=True)]
        assert (observations == expected).all() and rewards.tolist() == [1, 1]
        assert not terminated.any() and truncated.tolist() == [False, step == 3]
    for step in range(4, 10):
        *_, truncated = batch.step(slots[:1], np.array([step % 2]))
    assert truncated.all()
    batch.close()


def test_masks_follow_the_observation_and_actions_begin_where_the_space_does() -> None:
    batch = registry.build(EnvironmentSpec("Room-v0", {"end": 5.0}, registry.describe("Room-v0", {}, 9)), 2)
    slots, seeds, scenarios = slots_and_seeds(0, 1)
    scenarios[1] = {"count": 2}
    observations = batch.reset(slots, seeds, scenarios)
    assert observations[:, :3].tolist() == [[1, 0, 0], [0, 0, 1]]
    assert observations[:, -4:].tolist() == [[1, 1, 0, 1]] * 2
    _, rewards, terminated, truncated = batch.step(slots, np.array([0, 1]))
    assert (rewards.tolist(), terminated.tolist()) == ([0, 5], [False, True]) and not truncated.any()


def test_a_slot_that_raises_is_built_again_and_the_others_go_on() -> None:
    batch = GymnasiumSlots("Room-v0", 3, {}, 9)
    slots, seeds, scenarios = slots_and_seeds(0, 1, 2)
    batch.reset(slots, seeds, scenarios)
    with pytest.raises(SlotFailures) as raised:
        batch.step(slots, np.array([0, 3, 1]))
    ((slot, error),) = raised.value.errors.items()
    assert slot == 1 and str(error) == "the room is gone"
    observations, _, terminated, _ = raised.value.result
    assert observations[0, :3].tolist() == [0, 1, 0] and terminated[2]
    assert (Room.made, Room.closed) == (3, 1)
    batch.reset(*slots_and_seeds(1))
    batch.step(np.array([1]), np.array([0]))
    assert Room.made == 4
    batch.close()
    assert Room.closed == 4


@pytest.mark.parametrize(
    ("name", "options", "reason"),
    [
        ("CartPole-v2", {}, r"'CartPole-v2' is unknown: did you mean CartPole-v1"),
        ("cage3", {}, "did you mean cage2"),
        ("qqqqqqqqqq", {}, "known are cage2.* and Gymnasium's"),
        ("Pendulum-v1", {}, r"action space Box\(-2.0.*only Discrete\(n\) is supported"),
        ("Nowhere-v0", {}, "observation space Graph.*no fixed flat size"),
        ("Room-v0", {}, "no time limit of its own: give --episode-length"),
        ("CartPole-v1", {"sides": 3}, r"options \{'sides': 3\}.*unexpected keyword"),
        ("cage2", {"rulez": 1}, "no option 'rulez'; it has rules, green"),
        ("cage2", {"rules": "none"}, "rules is 'none'; it must be one of current, leaderboard"),
    ],
)
def test_what_cannot_be_played_is_refused_with_the_mend(
    name: str, options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(UserError, match=reason):
        registry.describe(name, options)


def test_cage2_is_described_without_numba_and_as_built() -> None:
    code = "import sys; from rollout_worker.environments.registry import describe; describe('cage2', {});"
    subprocess.run([sys.executable, "-c", code + "assert 'numba' not in sys.modules"], check=True)
    spaces = registry.describe("cage2", {"actions": "full"}, 50)
    built = registry.build(EnvironmentSpec("cage2", {"actions": "full"}, spaces), 2)
    assert spaces == Spaces(
        built.observation_size,
        built.observation_dtype.name,
        built.actions,
        built.masked,
        built.max_episode_steps,
    )


def test_only_modules_named_by_the_user_are_imported() -> None:
    registry.allow(["json"])
    with pytest.raises(UserError, match="--allow-env no_such_module cannot be imported"):
        registry.allow(["no_such_module"])
