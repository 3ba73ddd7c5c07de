"""`fleet evaluate`: what a checkpoint is worth, played on the cores of this machine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from deploy.config import CAGE2_ENVIRONMENTS
from deploy.exits import Exit, complain
from deploy.json_file import JsonFile, write_json
from deploy.settings import number, red_agent
from learner.config import COUNT, SEED
from protocol.errors import UserError

if TYPE_CHECKING:
    from deploy.playable import Playable
    from learner.evaluation import Cell

AllowEnv = Annotated[
    list[str] | None,
    typer.Option("--allow-env", metavar="MODULE", help="Import a module that registers environments."),
]

_EPISODES, _CYBORG_EPISODES = 1000, 100
"""Of each cell, by default; the original simulator plays a few a second."""


def evaluate(
    checkpoint: Annotated[
        str,
        typer.Argument(metavar="CHECKPOINT", help="A checkpoint, a run for its best, pretrained:NAME."),
    ],
    red_agents: Annotated[
        list[str] | None,
        typer.Option(
            "--red-agent", "--red", metavar="AGENT", help="Red agents (default: those it trained on)."
        ),
    ] = None,
    lengths: Annotated[
        list[str] | None,
        typer.Option("--episode-length", metavar="STEPS", help="Lengths (default: 30,50,100)."),
    ] = None,
    episodes: Annotated[
        str | None,
        typer.Option(
            "--episodes", metavar="N", help="Fresh episodes of each cell (default: 1000, in CybORG 100)."
        ),
    ] = None,
    seed: Annotated[
        str | None, typer.Option("--seed", metavar="N", help="Of the episodes (default: the run's plus 1).")
    ] = None,
    greedy: Annotated[
        bool, typer.Option("--greedy/--sampled", help="Play the most probable action, or a drawn one.")
    ] = True,
    environment: Annotated[
        str | None,
        typer.Option(
            "--env",
            metavar="NAME",
            help="cyborg: in the original simulator, beside the embedded one; or cage2.",
        ),
    ] = None,
    rules: Annotated[
        str | None,
        typer.Option("--rules", metavar="RULES", help="current or leaderboard (default: as it was trained)."),
    ] = None,
    allow_env: AllowEnv = None,
    json_file: JsonFile = None,
) -> Exit:
    """Play fresh episodes with a checkpoint; print the mean return ± standard error of each cell.

    Ctrl-C ends it, and prints what was measured by then.
    """
    told_episodes = None if episodes is None else number(int, "--episodes", episodes, COUNT)
    fresh_seed = None if seed is None else number(int, "--seed", seed, SEED)

    from rich.console import Console

    from deploy.environment import refuse_unplayable
    from deploy.pretrained import resolve
    from learner.evaluation import evaluation_plain, evaluation_table
    from rollout_worker.environments.registry import allow

    allow(allow_env or ())

    playable = resolve(checkpoint)
    playable = with_cells(playable, red_agents or [], lengths or [], greedy)
    # Under the run's own seed they would be the episodes by which its best version was chosen.
    playable = replace(playable, seed=playable.seed + 1 if fresh_seed is None else fresh_seed)
    if environment is not None or rules is not None:
        playable = elsewhere(playable, environment, rules)
    refuse_unplayable(playable.environment)
    if unseen := never_seen(playable):
        typer.echo(f"fleet: note: it never trained against {' or '.join(unseen)}", err=True)
    usual = _CYBORG_EPISODES if playable.environment.name == "cyborg" else _EPISODES
    per_cell = told_episodes or usual
    if environment == "cyborg":
        return _cross_check(playable, per_cell, json_file)
    cells, interrupted = _measured(playable, per_cell, allow_env or ())
    if cells:
        Console().print(evaluation_table(cells))
        write_json(json_file, evaluation_plain(cells))
    return _end(cells, interrupted)


def _cross_check(playable: Playable, per_cell: int, json_file: Path | None) -> Exit:
    """Evaluate in the embedded simulator, which takes seconds, then in the original one; print both."""
    from rich.console import Console

    from deploy.crosscheck import EMBEDDED_EPISODES, compare, comparison_plain, comparison_table

    embedded, interrupted = _measured(elsewhere(playable, "cage2"), max(per_cell, EMBEDDED_EPISODES))
    if interrupted:
        return _end([], interrupted)
    real, interrupted = _measured(playable, per_cell)
    if real:
        pairs, rules = compare(embedded, real), str(playable.environment.options["rules"])
        Console().print(comparison_table(pairs, rules))
        write_json(json_file, comparison_plain(pairs, rules))
    return _end(real, interrupted)


def _end(shown: Sequence[Cell], interrupted: str) -> Exit:
    if not interrupted:
        return Exit.OK
    return complain(f"interrupted after {interrupted}" if shown else "interrupted", Exit.INTERRUPTED)


def _measured(playable: Playable, per_cell: int, allow_env: Sequence[str] = ()) -> tuple[list[Cell], str]:
    """Return what an evaluation found, and after how much of it a Ctrl-C ended it, if one did."""
    from deploy.playing import noting_interrupts, play_returns
    from deploy.progress import EvaluationDisplay
    from learner.evaluation import evaluation_cells

    spec, returns = playable.environment, dict[int, float]()
    scenarios = spec.evaluate_scenarios
    steps = [int(scenario.get("episode_length", 1)) for scenario in scenarios]
    wanted = per_cell * len(scenarios)
    with (
        noting_interrupts() as interrupts,
        EvaluationDisplay(spec.name, wanted, per_cell * sum(steps)) as display,
    ):
        for ticket, value in play_returns(playable, wanted, allow_env):
            returns[ticket] = value
            display.ended(steps[ticket % len(steps)])
            if interrupts:
                break
    found = ((scenarios[ticket % len(scenarios)], returns[ticket]) for ticket in sorted(returns))
    cut_short = f"{len(returns):,} of {wanted:,} episodes" if interrupts and len(returns) < wanted else ""
    return evaluation_cells(spec.name, found), cut_short


def elsewhere(playable: Playable, name: str | None, rules: str | None = None) -> Playable:
    """Return it in the other simulator of CAGE-2, or under other rules; None leaves either as it is.

    Raises UserError where it cannot play so.
    """
    from rollout_worker.environments.registry import describe

    spec = playable.environment
    able = CAGE2_ENVIRONMENTS if spec.name in CAGE2_ENVIRONMENTS else (spec.name,)
    if name is not None and name not in able:
        raise UserError(f"--env {name}: what was trained in {spec.name} is evaluated in {' or '.join(able)}")
    if rules is not None and spec.name not in CAGE2_ENVIRONMENTS:
        raise UserError(f"--rules belongs to cage2; this checkpoint plays {spec.name}")
    if spec.name not in CAGE2_ENVIRONMENTS:
        return playable
    name = name or spec.name
    options = {"rules": "current", **spec.options} | ({} if rules is None else {"rules": rules})
    describe(name, options, spec.spaces.max_episode_steps)
    return replace(playable, environment=replace(spec, name=name, options=options))


def never_seen(playable: Playable) -> list[str]:
    """Return the red agents it is to be evaluated against and was never trained against."""
    spec = playable.environment
    trained = {scenario.get("red_agent") for scenario in spec.train_scenarios}
    reds = dict.fromkeys(str(scenario.get("red_agent", "")) for scenario in spec.evaluate_scenarios)
    return [red for red in reds if red and red not in trained]


def with_cells(playable: Playable, red_agents: list[str], lengths: list[str], greedy: bool) -> Playable:
    """Return it with the scenarios of the cells asked for; those not asked for are the run's own."""
    from deploy.environment import CAGE2_EVALUATION_STEPS, cage2_cells

    spec = playable.environment
    if spec.name in CAGE2_ENVIRONMENTS:
        own = tuple(dict.fromkeys(str(scenario["red_agent"]) for scenario in spec.evaluate_scenarios))
        reds = tuple(red_agent(name.strip()) for text in red_agents for name in text.split(",")) or own
        steps = tuple(_steps(item) for text in lengths for item in text.split(",")) or CAGE2_EVALUATION_STEPS
        spec = replace(
            spec,
            spaces=replace(spec.spaces, max_episode_steps=max(steps)),
            evaluate_scenarios=cage2_cells(tuple(dict.fromkeys(reds)), tuple(dict.fromkeys(steps))),
        )
    elif red_agents or lengths:
        raise UserError(
            f"--red-agent and --episode-length belong to cage2; this checkpoint plays {spec.name}"
        )
    own_ways = [{**scenario, "greedy": greedy} for scenario in spec.evaluate_scenarios]
    scenarios = tuple(way for number, way in enumerate(own_ways) if way not in own_ways[:number])
    return replace(playable, environment=replace(spec, evaluate_scenarios=scenarios))


def _steps(text: str) -> int:
    if not text.strip().isdecimal() or not int(text):
        raise UserError(
            f"--episode-length {text} is no number of steps: give one such as 100, or several as 30,50"
        )
    return int(text)
