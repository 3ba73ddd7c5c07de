"""Defaults, then a TOML file, then the command line; and what they refuse."""

from __future__ import annotations

import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from deploy.config import GYMNASIUM_DEFAULTS, LaunchConfig
from deploy.options import settings
from deploy.settings import MAY_CHANGE_ON_RESUME, Settings, resolve, resolve_resumed, to_toml
from learner.config import PPOConfig, RunConfig
from protocol.errors import UserError


def written(tmp_path: Path, text: str) -> Path:
    file = tmp_path / "config.toml"
    file.write_text(text, encoding="utf-8")
    return file


def test_the_command_line_wins_over_the_file_and_the_file_over_the_defaults(tmp_path: Path) -> None:
    file = written(
        tmp_path, 'seed = 7\nn-envs = 8\nred = "sleep"\nlearning_rate = 1\nhidden = [32]\nport = 6000\n'
    )
    chosen = resolve({"n_envs": 9, "hidden": ["16,8", "4"]}, file)
    assert (chosen.run.seed, chosen.run.n_envs, chosen.run.red_agents) == (7, 9, ("sleep",))
    assert (chosen.ppo.learning_rate, chosen.ppo.hidden, chosen.ppo.gamma) == (
        1.0,
        (16, 8, 4),
        PPOConfig().gamma,
    )
    assert chosen.launch.port == "6000"


@pytest.mark.parametrize(
    "spelling", [["B_lineAgent", "RedMeanderAgent"], ["b_line,meander"], ["B_LINE", "meander"]]
)
def test_red_agents_have_two_spellings_and_make_mixtures(spelling: list[str]) -> None:
    assert resolve({"red_agents": spelling}).run.red_agents == ("b_line", "meander")


def test_every_field_is_an_option_with_a_help(tmp_path: Path) -> None:
    names = {field.name for kind in (RunConfig, PPOConfig, LaunchConfig) for field in fields(kind)}
    assert names - {"exact"} | {"lag"} == set(settings())
    assert all(setting.help for setting in settings().values())


def test_environment_options_are_toml_values_or_bare_text() -> None:
    chosen = resolve({"environment_options": ["green=true", "rate=0.5", "view=bits"]})
    assert dict(chosen.run.environment_options) == {"green": True, "rate": 0.5, "view": "bits"}


def test_exact_lag_implies_order_and_bound_and_wins_over_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, 'max_lag = 5\norder = "arrival"\n')
    run = resolve({"lag": "exact:1"}, file).run
    assert (run.exact, run.max_lag, run.order) == (True, 1, "started")


def test_sync_mode_has_no_lag_and_wins_over_that_of_a_file(tmp_path: Path) -> None:
    file = written(tmp_path, "max_lag = 5\nn_envs = 8\n")
    run = resolve({"mode": "sync"}, file).run
    assert (run.mode, run.max_lag, run.n_envs) == ("sync", 0, 8)
    again = resolve({}, written(tmp_path, to_toml(resolve({"mode": "sync"}))))
    assert (again.run.mode, again.run.max_lag) == ("sync", 0)


@pytest.mark.parametrize(
    ("given_values", "text", "message"),
    [
        (
            {"lag": "exact:1", "max_lag": 2},
            "",
            "--lag exact:1 implies --max-lag 1, not 2: leave --max-lag out",
        ),
        ({"lag": "exact:1", "order": "arrival"}, "", "implies --order started, not arrival"),
        ({"max_lag": 3}, 'lag = "exact:1"', "implies --max-lag 1, not 3"),
        ({"lag": "exact"}, "", "give exact:N"),
        ({"lag": "2"}, "", "--max-lag N"),
        ({"mode": "sync", "max_lag": 1}, "", "--max-lag 1 contradicts --mode sync"),
        ({"mode": "sync", "lag": "exact:0"}, "", "--lag exact:0 contradicts --mode sync"),
        ({}, 'mode = "sync"\nlag = "exact:2"', "--lag exact:2 contradicts --mode sync"),
        ({"mode": "sync"}, "stuck_after_seconds = 1\nmax_lags = 2", "unknown key 'max_lags'"),
        ({"step_hook": "debug:look"}, "", "--step-hook belongs to --mode sync"),
        ({"record_steps": "steps"}, "", "--record-steps belongs to --mode sync"),
        ({"red_agents": ["b_lin"]}, "", "unknown red agent 'b_lin': choose from b_line (B_lineAgent)"),
        ({}, "n_env = 3", "unknown key 'n_env': did you mean n_envs"),
        ({}, "zzz = 3", "unknown key 'zzz': fleet train --help"),
        ({}, 'seed = "one"', "seed is 'one': it must be a whole number"),
        ({}, "seed = 1.5", "seed is 1.5: it must be a whole number"),
        ({}, "seed = true", "seed is True: it must be a whole number"),
        ({}, "name = 3", "name is 3: it must be text in quotes"),
        ({}, 'rules = "new"', "rules is 'new': choose from current, leaderboard"),
        ({}, "seed = ", "is not valid TOML"),
        ({"environment_options": ["green"]}, "", "--env-option green is not understood: give NAME=VALUE"),
        ({"n_envs": "0"}, "", "--n-envs is 0; it must be from 1 to 1000000"),
        ({}, "n_envs = 0", "--n-envs is 0; it must be from 1 to 1000000"),
        ({}, "[ppo]\nepochs = 3", "[ppo] is a table: write its keys at the top level"),
        ({"workers": "2", "slots": "3"}, "n_envs = 7", "make 6 environments, not --n-envs 7"),
        ({}, "workers = 2\nslots = 3\nn_envs = 7", "make 6 environments, not --n-envs 7"),
        ({"liveness_seconds": "1"}, "", "--liveness-seconds is 1; it must be more than --heartbeat-seconds"),
        ({"order": "old"}, "", "--order is 'old': choose from arrival, started"),
    ],
)
def test_a_mistake_is_refused_in_words(
    tmp_path: Path, given_values: dict[str, Any], text: str, message: str
) -> None:
    with pytest.raises(UserError) as refusal:
        resolve(given_values, written(tmp_path, text))
    assert message in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "bad"),
    [
        ("workers", "-1"),
        ("slots", "-1"),
        ("n_envs", "0"),
        ("seed", "-1"),
        ("seed", str(2**63)),
        ("total_episodes", "0"),
        ("episodes_per_update", "0"),
        ("episode_length", "-1"),
        ("evaluation_episodes", "-1"),
        ("max_lag", "-1"),
        ("checkpoint_every", "0"),
        ("keep_checkpoints", "0"),
        ("heartbeat_seconds", "0"),
        ("liveness_seconds", "-1"),
        ("stuck_after_seconds", "0"),
        ("max_losses", "0"),
        ("hidden", ["0"]),
        ("hidden", ["64,-1"]),
        ("epochs", "0"),
        ("minibatch_steps", "0"),
        ("gamma", "1.5"),
        ("gae_lambda", "-0.1"),
        ("clip", "-1"),
        ("clip", "0"),
        ("clip_value", "-1"),
        ("learning_rate", "0"),
        ("final_learning_rate", "2"),
        ("entropy", "-0.1"),
        ("final_entropy", "-0.1"),
        ("value_coefficient", "-1"),
        ("max_grad_norm", "0"),
        ("target_kl", "-1"),
        ("reward_scale", "0"),
        ("behaviour_weight_cap", "0"),
        ("torch_threads", "-1"),
    ],
)
def test_a_number_out_of_range_is_refused_with_its_range(name: str, bad: str | list[str]) -> None:
    with pytest.raises(
        UserError, match=rf"--{name.replace('_', '-')} is \S+; it must be (from|more|at least)"
    ):
        resolve({name: bad})


@pytest.mark.parametrize("value", ["nan", "inf", "-inf"])
def test_no_number_is_infinite_or_none(value: str) -> None:
    numbers = [setting.name for setting in settings().values() if setting.type is float]
    assert len(numbers) > 10
    for name in numbers:
        with pytest.raises(UserError, match=rf"--{name.replace('_', '-')} is {value}"):
            resolve({name: value})


def test_a_run_trains_on_whole_batches() -> None:
    run = resolve({"total_episodes": "500", "episodes_per_update": "400"}).run
    assert (run.updates, run.planned_episodes) == (2, 800)


def test_workers_and_slots_make_the_number_of_environments(tmp_path: Path) -> None:
    chosen = resolve({"workers": "2", "slots": "3"})
    assert chosen.run.n_envs == 6
    assert resolve_resumed({}, written(tmp_path, to_toml(chosen))) == chosen


def test_other_environments_have_other_defaults_below_file_and_command_line(tmp_path: Path) -> None:
    file = written(tmp_path, 'env = "CartPole-v1"\nepochs = 7\n')
    chosen = resolve({"clip": "0.1"}, file)
    assert (chosen.run.episodes_per_update, chosen.ppo.activation, chosen.ppo.epochs, chosen.ppo.clip) == (
        GYMNASIUM_DEFAULTS["episodes_per_update"],
        "tanh",
        7,
        0.1,
    )
    assert resolve({}).ppo == PPOConfig()


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="cannot be read"):
        resolve({}, tmp_path / "none.toml")


names = st.text(st.characters(categories=("L", "N", "P", "S", "Zs")), max_size=8)


@given(
    seed=st.integers(0, 2**62),
    lag=st.integers(0, 9),
    exact=st.booleans(),
    learning_rate=st.floats(1e-9, 1.0),
    hidden=st.lists(st.integers(1, 512), max_size=3),
    red_agents=st.lists(st.sampled_from(["b_line", "meander", "sleep"]), min_size=1, max_size=4),
    options=st.dictionaries(names, names | st.booleans() | st.integers(-9, 9) | st.floats(-1, 1), max_size=3),
    init_from=names,
)
def test_a_written_file_gives_the_settings_back(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    lag: int,
    exact: bool,
    learning_rate: float,
    hidden: list[int],
    red_agents: list[str],
    options: dict[str, Any],
    init_from: str,
) -> None:
    chosen = Settings(
        RunConfig(
            seed=seed,
            max_lag=lag,
            exact=exact,
            order="started" if exact else "arrival",
            red_agents=tuple(red_agents),
            environment_options=tuple(sorted(options.items())),
        ),
        PPOConfig(learning_rate=learning_rate, hidden=tuple(hidden)),
        LaunchConfig(init_from=init_from),
    )
    file = written(tmp_path_factory.mktemp("run"), to_toml(chosen))
    assert resolve({}, file) == chosen


def test_a_resumed_run_keeps_what_makes_it_that_run(tmp_path: Path) -> None:
    file = written(tmp_path, to_toml(resolve({"seed": 3, "lag": "exact:1"})))
    longer = resolve_resumed({"total_episodes": 200_000, "workers": 3}, file)
    assert (longer.run.total_episodes, longer.run.seed, longer.launch.workers) == (200_000, 3, 3)
    with pytest.raises(UserError, match="--seed cannot change when a run is resumed"):
        resolve_resumed({"seed": 4}, file)


def test_what_may_change_on_resume_is_what_the_manual_says() -> None:
    manual = (Path(__file__).parents[2] / "docs" / "operations.md").read_text()
    section = manual.partition("## What may change on resume\n")[2].partition("Everything else")[0]
    told = set(re.findall(r"`(--[a-z-]+)`", section))
    assert told == {settings()[name].flags[0].split("/")[0] for name in MAY_CHANGE_ON_RESUME}
