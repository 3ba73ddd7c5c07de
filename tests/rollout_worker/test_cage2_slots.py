"""The slot interface and the Gymnasium forms of the embedded CAGE-2."""

import subprocess
import sys
from collections.abc import Mapping
from itertools import product
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from numpy.typing import NDArray

import rollout_worker.environments  # noqa: F401  # registers CAGE2-v0
from rollout_worker.environments.cage2 import (
    compilation,
    defender_view,
    full_view,
    kernels,
    spaces,
)
from rollout_worker.environments.cage2 import (
    options as named,
)
from rollout_worker.environments.cage2.description import blue_action_name
from rollout_worker.environments.cage2.scenario import Cage2Options
from rollout_worker.environments.cage2.slots import Cage2Slots

VIEWS = [
    ("bits", "full"), ("bits", "compact"), ("history", "full"), ("history", "compact"),
    ("activities+bits+scans", "compact-without-analyse"), ("decoys+actions", "compact-unmasked"),
    ("bits+decoys", "full-masked"), ("state", "compact"), ("state", "full-masked"),
]  # fmt: skip
PARTS = {
    "bits": 52,
    "scans": 3 * 13,
    "decoys": 2 * defender_view.N_LADDER_DECOYS,
    "activities": defender_view.N_RECENT * (13 + 1 + defender_view.N_AGES + 1),
    "actions": defender_view.N_OWN * 38 + 1,
    "ages": defender_view.N_SCAN_AGES * 13,
    "repeats": defender_view.N_REPEATS * defender_view.N_DEFENDED,
}
REDS = ("b_line", "meander", "sleep")
SCENARIOS: list[Mapping[str, Any]] = [
    {"red_agent": red, "rules": rules, "green": green, "episode_length": length}
    for red, rules, green, length in product(REDS, ("current", "leaderboard"), (False, True), (30, 50))
]
Episode = tuple[NDArray[np.uint8], NDArray[np.float32], NDArray[np.bool_]]


def actions_of(seed: int, count: int) -> NDArray[np.int64]:
    return np.random.default_rng(seed).integers(0, count, 50)


def play_alone(seed: int, scenario: Mapping[str, Any], **options: Any) -> Episode:
    """50 steps in an environment of its own: observations with the first, rewards, truncations."""
    slots = Cage2Slots(1, Cage2Options(**options))
    zero = np.zeros(1, np.int64)
    observations = [slots.reset(zero, np.array([seed], np.uint64), [scenario])[0]]
    rewards, truncations = np.zeros(50, np.float32), np.zeros(50, np.bool_)
    for step, action in enumerate(actions_of(seed, slots.actions)):
        seen, reward, terminated, truncated = slots.step(zero, np.array([action]))
        observations.append(seen[0])
        rewards[step], truncations[step] = reward[0], truncated[0]
        assert terminated.tolist() == [truncated[0] and options.get("observation") == "state"]
    return np.array(observations), rewards, truncations


@pytest.mark.parametrize(("observation", "actions"), VIEWS)
def test_an_episode_depends_on_its_seed_and_scenario_only(observation: str, actions: str) -> None:
    number = len(SCENARIOS)
    slots = Cage2Slots(number + 3, Cage2Options(observation=observation, actions=actions))
    places = np.random.default_rng(5).permutation(number + 3)[:number]
    played = [actions_of(seed, slots.actions) for seed in range(number)]
    for turn in range(2):  # the second time over what the first left behind
        first = slots.reset(places, np.arange(number, dtype=np.uint64), SCENARIOS)
        seen = np.zeros((number, 51, slots.observation_size), np.uint8)
        rewards, truncations = np.zeros((number, 50), np.float32), np.zeros((number, 50), np.bool_)
        seen[:, 0], done = first, np.zeros(number, np.int64)
        rng = np.random.default_rng(turn)
        while (done < 50).any():  # an arbitrary subset, each at its own step
            subset = rng.permutation(np.flatnonzero((done < 50) & (rng.random(number) < 0.6)))
            chosen = np.array([played[k][done[k]] for k in subset], np.int64)
            result = slots.step(places[subset], chosen)
            seen[subset, done[subset] + 1], rewards[subset, done[subset]] = result[:2]
            truncations[subset, done[subset]] = result[3]
            done[subset] += 1
        for seed, scenario in enumerate(SCENARIOS):
            alone = play_alone(seed, scenario, observation=observation, actions=actions)
            for together, expected in zip((seen[seed], rewards[seed], truncations[seed]), alone, strict=True):
                np.testing.assert_array_equal(together, expected)
            np.testing.assert_array_equal(truncations[seed], np.arange(1, 51) >= scenario["episode_length"])


def test_seeds_and_options_make_a_difference() -> None:
    episodes = [play_alone(seed, {"red_agent": "meander"})[0] for seed in range(20)]
    assert len({episode.tobytes() for episode in episodes}) > 10
    options = {
        "rules": ("current", "leaderboard"),
        "green": (False, True),
        "red_agent": ("b_line", "meander"),
    }
    for key, values in options.items():
        pairs = ([play_alone(seed, {key: value})[0].tobytes() for value in values] for seed in range(400))
        assert any(a != b for a, b in pairs), key
    for long, short in (("B_lineAgent", "b_line"), ("RedMeanderAgent", "meander"), ("SleepAgent", "sleep")):
        same = [play_alone(3, {"red_agent": name})[0] for name in (long, short)]
        np.testing.assert_array_equal(same[0], same[1])


@pytest.mark.parametrize(("observation", "actions"), VIEWS)
def test_the_view_is_what_the_defender_view_makes_of_the_bits(observation: str, actions: str) -> None:
    options = Cage2Options(observation=observation, actions=actions)
    slots, declared = Cage2Slots(1, options), spaces.spaces(options)
    assert slots.observation_size == declared.observation_size
    assert (slots.actions, slots.masked, slots.max_episode_steps) == (declared.actions, declared.masked, 100)
    assert slots.observation_dtype == np.dtype(declared.observation_dtype)
    plain, zero, seed = Cage2Slots(1), np.zeros(1, np.int64), np.array([7], np.uint64)
    view = np.zeros(defender_view.VIEW_SIZE, np.uint8)
    bits, seen = plain.reset(zero, seed, [{}])[0], slots.reset(zero, seed, [{}])[0]
    defender_view.reset_view(view)
    offered = [a for a in range(37) if actions != "compact-without-analyse" or not 1 <= a <= 9]
    for action in actions_of(7, slots.actions):
        features = np.zeros(defender_view.WIDE_VIEW_WIDTH, np.uint8)
        defender_view.write_view(view, bits, features)
        columns = np.split(features, np.cumsum([*PARTS.values(), 37]))
        parts = dict(zip(PARTS, columns, strict=False))
        chosen = observation.split("+") if "+" in observation or observation in PARTS else PARTS
        shown = [parts[part] for part in PARTS if part in chosen]
        if observation == "state":
            state = np.zeros((1, full_view.STATE_SIZE), np.uint8)
            kernels.write_states(plain.rows, zero, plain.rows.copy(), plain.scripts, state)
            shown.append(state[0])
        compact = actions.startswith("compact")
        if slots.masked:
            shown.append(columns[-2][offered] if compact else columns[-1])
        np.testing.assert_array_equal(seen, np.concatenate(shown))
        full = defender_view.translate_action(view, offered[action]) if compact else action
        bits = plain.step(zero, np.array([full]))[0][0]
        seen = slots.step(zero, np.array([action]))[0][0]
        defender_view.update_view(view, bits, full)


def test_a_used_up_decoy_sleeps_where_nothing_is_masked() -> None:
    slots, zero = Cage2Slots(1, Cage2Options(actions="compact-unmasked")), np.zeros(1, np.int64)
    slots.reset(zero, np.zeros(1, np.uint64), [{}])
    taken = []
    for _ in range(3):
        slots.step(zero, np.array([29]))
        taken.append(blue_action_name(int(slots.rows["blue_action"][0])))
    assert taken == ["DecoyFemitter Enterprise1", "Sleep", "Sleep"]


def test_masked_full_actions_are_the_decoys_that_would_change_nothing() -> None:
    options, zero = Cage2Options(observation="bits", actions="full-masked"), np.zeros(1, np.int64)
    slots = Cage2Slots(1, options)
    legal = slots.reset(zero, np.zeros(1, np.uint64), [{}])[0, 52:]
    rng = np.random.default_rng(0)
    for _ in range(60):
        before, view = slots.rows.copy(), slots._views.copy()
        for action in range(145):
            slots.step(zero, np.array([action]))
            changed = (slots.rows["decoys"] != before["decoys"]).any()
            assert legal[action] == (changed or "Decoy" not in blue_action_name(action))
            slots.rows[:], slots._views[:] = before, view
        legal = slots.step(zero, rng.integers(28, 145, 1))[0][0, 52:]


def test_the_declared_sizes_are_those_of_the_view() -> None:
    assert named.HISTORY_PARTS == PARTS
    assert named.HISTORY_SIZE == defender_view.HISTORY_SIZE
    assert named.COMPACT_ACTIONS == defender_view.COMPACT_ACTIONS
    assert named.STATE_SIZE == full_view.STATE_SIZE


@pytest.mark.parametrize("options", [{}, {"observation": "history", "actions": "compact"}])
def test_what_a_message_carries_compiles_nothing_anew(options: dict[str, Any]) -> None:
    slots = Cage2Slots(2, Cage2Options(**options))
    both, seeds = np.arange(2), np.arange(2, dtype=np.uint64)
    kernel: Any = kernels.step_viewed_rows if options else kernels.step_rows
    compiled = len(kernel.signatures)
    slots.reset(both, seeds, [{}, {}])
    actions = np.frombuffer(np.zeros(2, np.int64).tobytes(), np.int64)
    assert not actions.flags.writeable
    slots.step(both, actions)
    assert len(kernel.signatures) == compiled


@pytest.mark.parametrize(
    ("options", "word"),
    [
        ({"rules": "old"}, "current, leaderboard"),
        ({"observation": "pixels"}, "history, bits, state"),
        ({"actions": "few"}, "compact, compact-unmasked, .* full, full-masked"),
        ({"red_agent": "red"}, "B_lineAgent"),
        ({"max_steps": 0}, r"max_steps is 0; it must be a number of steps in 1\.\."),
        ({"green": "maybe"}, "green is 'maybe'; it must be true or false"),
        ({"green": 1}, "green is 1; it must be true or false"),
    ],
)
def test_unknown_options_are_refused_with_the_allowed_ones(options: dict[str, Any], word: str) -> None:
    with pytest.raises(ValueError, match=word):
        Cage2Slots(1, Cage2Options(**options))


def test_there_is_at_least_one_slot() -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Cage2Slots(0)


@pytest.mark.parametrize(
    ("scenario", "word"),
    [
        ({"red_agent": "B_line"}, "b_line"),
        ({"episode_length": 101}, "1..100"),
        ({"episode_length": "30"}, "1..100"),
        ({"length": 30}, "episode_length"),
        ({"rules": 1}, "leaderboard"),
    ],
)
def test_unknown_scenarios_are_refused(scenario: dict[str, Any], word: str) -> None:
    slots = Cage2Slots(2)
    with pytest.raises(ValueError, match=word):
        slots.reset(np.array([0]), np.zeros(1, np.uint64), [scenario])


def test_wrong_slots_and_actions_change_nothing() -> None:
    for observation, actions in VIEWS:
        slots = Cage2Slots(3, Cage2Options(observation=observation, actions=actions))
        two, none = np.arange(2), np.zeros(2, np.int64)
        with pytest.raises(ValueError, match=r"a slot is outside 0\.\.2"):
            slots.reset(two + 2, np.zeros(2, np.uint64), [{}, {}])
        with pytest.raises(ValueError, match="1 seeds"):
            slots.reset(two, np.zeros(1, np.uint64), [{}, {}])
        slots.reset(two, np.zeros(2, np.uint64), [{}, {}])
        before = slots.rows.tobytes()
        last = slots.actions - 1
        for wrong in (-1, last + 1, 2**40):
            with pytest.raises(ValueError, match=rf"action {wrong} is outside 0\.\.{last}"):
                slots.step(two, np.array([0, wrong]))
        for wrong in (-1, 3, -(2**40)):
            with pytest.raises(ValueError, match=rf"slot {wrong} is outside 0\.\.2"):
                slots.step(np.array([0, wrong]), none)
        with pytest.raises(ValueError, match="slot 2 must be reset"):
            slots.step(np.array([0, 2]), none)
        with pytest.raises(ValueError, match="one equal dimension"):
            slots.step(two, none[:1])
        assert slots.rows.tobytes() == before
        assert slots.step(none[:0], none[:0])[0].shape == (0, slots.observation_size)


@pytest.mark.parametrize("observation", ["bits", "history", "scans+decoys"])
def test_a_step_is_told_in_words(observation: str) -> None:
    options, zero = Cage2Options(red_agent="b_line", observation=observation), np.zeros(1, np.int64)
    slots = Cage2Slots(1, options)
    slots.reset(zero, np.zeros(1, np.uint64), [{}])
    lines = []
    for step in range(100):
        slots.step(zero, np.array([139 if step == 99 else 0]))
        lines.append(slots.describe_step(0))
    assert lines[0] == (
        "Blue Sleep is done; Red DiscoverRemoteSystems User succeeds; reward 0.0; "
        "seen nothing; marked nothing; sessions User0 1 privileged"
    )
    assert "Red Impact Op_Server0 succeeds" in lines[90]
    assert "Op_Server0 User" in lines[90]
    assert lines[99].startswith("Blue Restore Op_Server0 succeeds; ")
    assert [blue_action_name(action) for action in (0, 1, 2, 139)] == [
        "Sleep", "Monitor", "Analyse Defender", "Restore Op_Server0",
    ]  # fmt: skip
    with pytest.raises(ValueError, match="145"):
        blue_action_name(145)


def make(**options: Any) -> gymnasium.Env[Any, Any]:
    return gymnasium.make("CAGE2-v0", **options)


def test_gymnasium_accepts_the_environment() -> None:
    env = make(red="b_line", max_steps=100, rules="current", render_mode="ansi")
    assert env.observation_space == gymnasium.spaces.Box(0, 1, (52,), np.uint8)
    check_env(env.unwrapped)
    assert gymnasium.make("CAGE2-v0", green=True).spec is not None
    with pytest.raises(ValueError, match="ansi"), pytest.warns(UserWarning, match="render_mode"):
        make(render_mode="human")


def test_the_environment_plays_the_episode_of_its_seed() -> None:
    env = make(red="meander", max_steps=50, rules="leaderboard", truth=True, render_mode="ansi")
    with pytest.raises(ValueError, match="must be reset"):
        env.step(0)
    scenario = {"red_agent": "meander", "rules": "leaderboard", "episode_length": 50}
    seen, rewards, truncations = play_alone(11, scenario)
    observation, info = env.reset(seed=11)
    assert info == {}
    kept = [observation]
    for step, action in enumerate(actions_of(11, 145)):
        observation, reward, terminated, truncated, info = env.step(action)
        kept.append(observation)
        assert reward == pytest.approx(float(rewards[step]))
        assert (terminated, truncated) == (False, bool(truncations[step]))
        assert set(info) == {"red_action", "red_success", "blue_success"}
        assert info["red_action"] in str(env.render())
    np.testing.assert_array_equal(np.array(kept), seen)
    following = [env.reset()[0], *(env.step(int(action))[0] for action in actions_of(11, 145))]
    assert not np.array_equal(np.array(following), seen)  # goes on with another episode
    with pytest.raises(ValueError, match="outside"):
        env.step(145)
    with pytest.raises(ValueError, match=r"action 1\.5 is no integer"):
        env.step(1.5)


def reference(number: int, mode: AutoresetMode) -> SyncVectorEnv:
    return SyncVectorEnv([lambda: make(red="meander", max_steps=7)] * number, autoreset_mode=mode)


@pytest.mark.parametrize("mode", list(AutoresetMode))
def test_the_vector_form_does_what_gymnasiums_own_does(mode: AutoresetMode) -> None:
    number, rng = 5, np.random.default_rng(0)
    options: dict[str, Any] = {"num_envs": number, "red": "meander", "max_steps": 7, "autoreset_mode": mode}
    ours: Any = gymnasium.make_vec("CAGE2-v0", **options)  # its base types seeds more narrowly
    theirs = reference(number, mode)
    assert ours.metadata["autoreset_mode"] is mode
    assert ours.observation_space == theirs.observation_space
    assert ours.action_space == theirs.action_space
    np.testing.assert_array_equal(ours.reset(seed=3)[0], theirs.reset(seed=3)[0])
    for step in range(40):
        actions = rng.integers(0, 145, number)
        (*mine, info), (*other, expected) = ours.step(actions), theirs.step(actions)
        for a, b in zip(mine, other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6)
        assert ("final_obs" in info) == ("final_obs" in expected)
        if "final_obs" in info:
            np.testing.assert_array_equal(info["_final_obs"], expected["_final_obs"])
            np.testing.assert_array_equal(np.stack(info["final_obs"]), np.stack(expected["final_obs"]))
        if mode is AutoresetMode.DISABLED and mine[3].any():
            with pytest.raises(ValueError, match="reset them first"):
                ours.step(actions)
            for mask in (np.arange(number) % 2 == 0, np.arange(number) % 2 == 1):
                seeds = [100 * step + row for row in range(number)]
                again = ours.reset(seed=seeds, options={"reset_mask": mask})[0]
                np.testing.assert_array_equal(
                    again, theirs.reset(seed=list(seeds), options={"reset_mask": mask.copy()})[0]
                )


def test_the_vector_form_tells_the_truth_on_request_and_refuses_wrong_arguments() -> None:
    envs: Any = gymnasium.make_vec("CAGE2-v0", num_envs=4, red="b_line", max_steps=3, truth=True)
    with pytest.raises(ValueError, match="must be reset"):
        envs.step(np.zeros(4, np.int64))
    envs.reset(seed=0)
    infos = [envs.step(np.zeros(4, np.int64))[4] for _ in range(4)]
    assert [info["red_kind"].tolist() for info in infos[:3]] == [[1] * 4, [2] * 4, [3] * 4]
    assert [info["_red_kind"].all() for info in infos] == [True, True, True, False]
    with pytest.raises(ValueError, match="outside"):
        envs.step(np.array([0, 0, 0, 145]))
    with pytest.raises(ValueError, match="actions are float64; they must be integers"):
        envs.step(np.full(4, 1.5))
    for options in ({"reset_mask": np.zeros(4, np.bool_)}, {"reset_mask": np.ones(3, np.bool_)}):
        with pytest.raises(ValueError, match="reset_mask"):
            envs.reset(options=options)
    with pytest.raises(ValueError, match="3 seeds"):
        envs.reset(seed=[1, 2, 3])


def run(code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    return done.stdout.strip()


def test_numba_is_imported_only_where_cage2_is_built() -> None:
    code = (
        "import sys, rollout_worker.environments\n"
        "from rollout_worker.environments.cage2.scenario import Cage2Options\n"
        "from rollout_worker.environments.cage2.spaces import spaces\n"
        "spaces(Cage2Options(observation='history', actions='compact'))\n"
        "print('numba' in sys.modules)"
    )
    assert run(code) == "False"


def test_a_second_process_compiles_nothing_and_the_cache_is_keyed_by_all_sources() -> None:
    code = (
        "import sys\n"
        "from rollout_worker.environments.cage2 import kernels\n"
        "kernels.compile_kernels()\n"
        "all_kernels = [k for k in vars(kernels).values() if hasattr(k, 'stats')]\n"
        "own = [k for k in all_kernels if k.py_func.__module__ == kernels.__name__ and k.stats.cache_path]\n"
        "print(len(own), sum(sum(k.stats.cache_misses.values()) for k in own))\n"
        "print(*sorted(m.rpartition('.')[2] for m in sys.modules if 'environments.cage2.' in m))"
    )
    Cage2Slots(1)  # has compiled them, if need be
    counts, modules = run(code).splitlines()
    assert counts == "5 0"
    assert set(modules.split()) - {"gymnasium_env"} == set(compilation.COMPILED_MODULES)
