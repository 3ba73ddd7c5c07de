"""From settings to the environment: what a defender sees and chooses from, red agents and lengths."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from deploy.environment import environment_spec
from deploy.settings import resolve, resolve_resumed, to_toml
from learner.checkpoints import Checkpoint, save
from learner.config import PPOConfig
from learner.models import policy_spec
from learner.opening import LearnerOptions, open_run
from learner.run import scenario_labels
from learner.trainer import Trainer
from protocol.errors import UserError
from protocol.specs import EnvironmentSpec
from rollout_worker.environments import registry
from rollout_worker.environments.cage2.options import ACTION_SETS, HISTORY_PARTS, observation_named


def spec_of(**given: Any) -> EnvironmentSpec:
    return environment_spec(resolve(given).run)


def test_the_defaults_see_the_whole_history_and_choose_compact_actions() -> None:
    spec = spec_of()
    assert spec.options == {"rules": "current", "observation": "history", "actions": "compact"}
    assert (spec.spaces.inputs, spec.spaces.actions, spec.spaces.masked) == (363, 37, True)


@pytest.mark.parametrize(
    ("observation", "actions", "kept", "inputs", "choices", "masked"),
    [
        ("bits", "full", "bits", 52, 145, False),
        ("scans+bits", "full-masked", "bits+scans", 91, 145, True),
        ("bits+scans+decoys+activities+actions+ages+repeats", "compact-unmasked", "history", 363, 37, False),
        ("decoys", "compact-without-analyse", "decoys", 42, 28, True),
        ("state", "compact", "state", 767, 37, True),
    ],
)
def test_what_is_chosen_by_name_is_described_and_built(
    observation: str, actions: str, kept: str, inputs: int, choices: int, masked: bool
) -> None:
    spec = spec_of(observation=observation, actions=actions)
    assert (spec.options["observation"], spec.options["actions"]) == (kept, actions)
    assert (spec.spaces.inputs, spec.spaces.actions, spec.spaces.masked) == (inputs, choices, masked)
    assert registry.build(spec, 2).observation_size == spec.spaces.observation_size


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"observation": "pixels"}, "--observation is 'pixels'; it must be history, bits, state, or parts"),
        ({"observation": "bits+bits"}, "parts of the history joined by +: bits+scans+decoys+activities+act"),
        ({"observation": "bits+state"}, "--observation is 'bits+state'"),
        ({"observation": ""}, "--observation is ''"),
        ({"actions": "few"}, "--actions is 'few'; it must be one of compact, compact-unmasked, compact-with"),
        ({"environment": "CartPole-v1", "observation": "bits"}, "--observation belongs to cage2"),
        ({"environment": "CartPole-v1", "actions": "full"}, "--actions belongs to cage2"),
        ({"environment_options": ["observation=bits"]}, "give --observation instead"),
        ({"environment_options": ["actions=full"]}, "give --actions instead"),
        ({"environment_options": ["red_agent=sleep"]}, "give --red-agent instead"),
        ({"environment_options": ["max_steps=30"]}, "give --episode-length instead"),
        ({"environment": "cyborg", "observation": "state"}, "CybORG tells no true state"),
        ({"episode_length": ["30,0"]}, "--episode-length is [30, 0]: give numbers of steps, or 0 alone"),
        ({"episode_length": "-1"}, "--episode-length is -1; it must be"),
    ],
)
def test_a_mistake_is_refused_in_one_line(given: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as refusal:
        spec_of(**given)
    assert message in str(refusal.value) and "\n" not in str(refusal.value)


def test_tickets_walk_through_all_pairs_of_red_agent_and_length() -> None:
    spec = spec_of(red_agents=["b_line,meander"], episode_length=["30,50"])
    pairs = [(one["red_agent"], one["episode_length"]) for one in spec.train_scenarios]
    assert pairs == [("b_line", 30), ("meander", 30), ("b_line", 50), ("meander", 50)]
    assert scenario_labels(spec.train_scenarios) == ["b_line/30", "meander/30", "b_line/50", "meander/50"]
    assert spec.spaces.max_episode_steps == 100
    one = spec_of(episode_length="40")
    assert [scenario["episode_length"] for scenario in one.train_scenarios] == [40, 40]
    assert scenario_labels(one.train_scenarios) == ["b_line", "meander"]
    own = spec_of(episode_length="0").train_scenarios
    assert [scenario["episode_length"] for scenario in own] == [100, 100]
    usual = spec_of().train_scenarios
    assert [scenario["episode_length"] for scenario in usual] == [30, 30, 50, 50, 100, 100]
    assert spec_of(episode_length=["30", "200"]).spaces.max_episode_steps == 200


def test_other_environments_take_several_lengths_too() -> None:
    spec = spec_of(environment="CartPole-v1", episode_length=["20,40"])
    assert spec.train_scenarios == ({"episode_length": 20}, {"episode_length": 40})
    assert (spec.spaces.max_episode_steps, scenario_labels(spec.train_scenarios)) == (
        40,
        ["all/20", "all/40"],
    )
    assert scenario_labels(spec_of(environment="CartPole-v1").train_scenarios) == ["all"]


def test_lengths_and_names_survive_the_file(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    chosen = resolve({"episode_length": ["30,50"], "observation": "bits+scans", "actions": "full"})
    file.write_text(to_toml(chosen))
    assert resolve({}, file) == chosen
    file.write_text("episode_length = 30\n")
    assert resolve({}, file).run.episode_length == (30,)
    for name, value in (("observation", "bits"), ("actions", "full")):
        with pytest.raises(UserError, match=f"--{name} cannot change when a run is resumed"):
            resolve_resumed({name: value}, file)


@pytest.mark.parametrize("flag", ["observation", "actions"])
def test_weights_for_another_sight_or_other_actions_are_refused(tmp_path: Path, flag: str) -> None:
    first = {"observation": "bits+scans", "actions": "compact"}
    other = first | {flag: {"observation": "history", "actions": "compact-unmasked"}[flag]}
    spec, config = spec_of(**first), resolve({}).run
    trainer = Trainer(policy_spec(spec, PPOConfig()), PPOConfig(), 1, 1)
    save(tmp_path / "old", Checkpoint(0, trainer.state()[0], {}, {"environment": asdict(spec)}))
    options = LearnerOptions(
        config, PPOConfig(), spec_of(**other), tmp_path / "run", init_from=tmp_path / "old"
    )
    expected = f"the checkpoint was trained with --{flag} {first[flag]}, not {other[flag]}"
    with pytest.raises(UserError, match=expected.replace("+", r"\+")), ExitStack() as opened:
        open_run(options, opened)
    with ExitStack() as opened:
        open_run(replace(options, environment=spec), opened)


def test_a_policy_of_another_release_is_refused_where_it_is_played() -> None:
    spec = spec_of()
    older = replace(spec, spaces=replace(spec.spaces, observation_size=301))
    with pytest.raises(UserError, match="observation_size 400 here, 301 where the policy was trained"):
        registry.build(older, 2)


def test_the_manual_tells_every_observation_and_action_set() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "cage2.md").read_text()
    for name in (*HISTORY_PARTS, "history", "state"):
        assert f"| `{name}` | {observation_named(name).width} |" in manual
    for name, actions in ACTION_SETS.items():
        assert f"| `{name}` | {len(actions.offered)} |" in manual
