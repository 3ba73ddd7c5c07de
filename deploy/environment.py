"""From a run's settings to the description of its environment, which every worker builds."""

from __future__ import annotations

from collections.abc import Sequence

from deploy.config import CAGE2_ENVIRONMENTS
from deploy.options import settings
from learner.config import RunConfig
from protocol.errors import UserError
from protocol.specs import EnvironmentSpec, Scenario

CAGE2_EVALUATION_STEPS = (30, 50, 100)
"""The lengths that the CAGE Challenge 2 scores."""


def environment_spec(run: RunConfig, allow_env: Sequence[str] = ()) -> EnvironmentSpec:
    """Return the environment and the scenarios of a run. Raises UserError if it cannot be described."""
    from rollout_worker.environments.registry import allow, describe

    allow(allow_env)
    _refuse_foreign_options(run)
    name, options, lengths = run.environment, dict(run.environment_options), run.episode_length
    if name not in CAGE2_ENVIRONMENTS:
        return EnvironmentSpec(
            name,
            options,
            describe(name, options, max(lengths)),
            train_scenarios=tuple({"episode_length": n} for n in lengths) if len(lengths) > 1 else ({},),
            evaluate_scenarios=_both_ways(({},)),
            step_delay=run.step_delay,
        )
    options = {"rules": run.rules, **options, **_defender_options(run)}
    return EnvironmentSpec(
        name,
        options,
        describe(name, options, max(*CAGE2_EVALUATION_STEPS, *lengths)),
        train_scenarios=tuple(cage2_scenario(red, n or 100) for n in lengths for red in run.red_agents),
        evaluate_scenarios=_both_ways(cage2_cells(tuple(dict.fromkeys(run.red_agents)))),
        step_delay=run.step_delay,
    )


def refuse_unplayable(spec: EnvironmentSpec) -> None:
    """Raise UserError, before anything is started, where this machine cannot play the environment."""
    if spec.name == "cyborg":
        from rollout_worker.environments.cage2 import cyborg_package

        cyborg_package.load(spec.options.get("rules", "current"))


def cage2_cells(
    red_agents: tuple[str, ...], lengths: tuple[int, ...] = CAGE2_EVALUATION_STEPS
) -> tuple[Scenario, ...]:
    """Return the cells of an evaluation table: each red agent at each length."""
    return tuple(cage2_scenario(red, steps) for red in red_agents for steps in lengths)


def _both_ways(cells: tuple[Scenario, ...]) -> tuple[Scenario, ...]:
    """Return cells played with sampled actions, then the same with the most probable ones."""
    return cells + tuple({**cell, "greedy": True} for cell in cells)


def cage2_scenario(red_agent: str, steps: int) -> Scenario:
    """Return the scenario of one episode of CAGE-2."""
    return {"red_agent": red_agent, "episode_length": steps}


def _defender_options(run: RunConfig) -> dict[str, str]:
    """Return what a defender sees and chooses from, by the names that are kept. Raises UserError."""
    from rollout_worker.environments.cage2.options import actions_named, observation_named

    own = {name: f"--{name}" for name in ("rules", "observation", "actions")}
    own |= {"red_agent": "--red-agent", "max_steps": "--episode-length", "episode_length": "--episode-length"}
    for name, _ in run.environment_options:
        if name in own:
            raise UserError(f"--env-option {name}=... is an option of its own: give {own[name]} instead")
    try:
        actions_named(run.actions)
        return {"observation": observation_named(run.observation).name, "actions": run.actions}
    except ValueError as error:
        raise UserError(f"--{error}") from error


def _refuse_foreign_options(run: RunConfig) -> None:
    default, foreign = RunConfig(), run.environment not in CAGE2_ENVIRONMENTS
    for name, unfit in (
        ("red_agents", foreign),
        ("rules", foreign),
        ("observation", foreign),
        ("actions", foreign),
    ):
        if unfit and getattr(run, name) != getattr(default, name):
            flag = settings()[name].flags[0]
            raise UserError(f"{flag} belongs to cage2; leave it out with --env {run.environment}")
