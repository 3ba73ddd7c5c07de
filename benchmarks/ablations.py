"""What each option of CAGE-2's environment is worth: `python benchmarks/ablations.py [--json FILE]`.

Trains every variant from scratch with every seed, on the same number of environment steps, and plays the last
version greedily on fresh episodes. One process trains and plays one variant, to the bit as
`fleet train --lag exact:2` does. Finished trainings are kept in FILE, a line each, and not repeated when the
command is given again.
"""

from __future__ import annotations

import json
import os
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer

from deploy.environment import cage2_cells, environment_spec
from deploy.local import SINGLE_THREADED
from deploy.tether import die_with
from learner.config import PPOConfig, RunConfig
from protocol.messages import Arrays
from protocol.specs import EnvironmentSpec, PolicySpec
from protocol.tickets import Ticket

VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "defaults": {},
    "bits": {"observation": "bits"},
    "without-scans": {"observation": "bits+decoys+activities+actions"},
    "without-decoys": {"observation": "bits+scans+activities+actions+ages+repeats"},
    "without-activities": {"observation": "bits+scans+decoys+actions+ages+repeats"},
    "without-actions": {"observation": "bits+scans+decoys+activities+ages+repeats"},
    "without-ages": {"observation": "bits+scans+decoys+activities+actions+repeats"},
    "without-repeats": {"observation": "bits+scans+decoys+activities+actions+ages"},
    "compact-unmasked": {"actions": "compact-unmasked"},
    "compact-without-analyse": {"actions": "compact-without-analyse"},
    "full": {"actions": "full"},
    "full-masked": {"actions": "full-masked"},
    "one-length": {"episode_length": (100,)},
    "state": {"observation": "state"},
}
"""Fields of RunConfig that differ from the defaults."""
UPDATE_STEPS = 40_000
"""Of an update: the longer its episodes, the fewer."""
EVALUATION_SEED = 9_000_000
"""Plus the seed of the training: episodes that no training and no choice has seen."""
SLOTS = 400


@dataclass(frozen=True, slots=True)
class Training:
    """One training of a variant, to be done."""

    variant: str
    seed: int
    updates: int
    episodes: int
    """Evaluation episodes of each cell."""


@dataclass(frozen=True, slots=True)
class Result:
    """What came of it: mean returns of the cells, in the order of `cage2_cells`."""

    training: Training
    returns: list[float]
    seconds: float


def run_config(training: Training) -> RunConfig:
    """Return the run of a variant, with as many steps in an update as others have."""
    run = RunConfig(seed=training.seed, **VARIANTS[training.variant])
    batch = round(UPDATE_STEPS / float(np.mean(run.episode_length)))
    return replace(run, episodes_per_update=batch, total_episodes=batch * training.updates)


def train(run: RunConfig, environment: EnvironmentSpec) -> tuple[PolicySpec, Arrays]:
    """Train from scratch in this process; return the policy and its last weights."""
    from learner.models import policy_spec
    from learner.trainer import Trainer
    from rollout_worker.rollout import play

    ppo = PPOConfig()
    policy = policy_spec(environment, ppo)
    trainer = Trainer(policy, ppo, run.seed, run.updates)
    versions = deque([trainer.policy_arrays()], maxlen=run.max_lag + 1)
    for update in range(run.updates):
        first = update * run.episodes_per_update
        tickets = [Ticket("train", first + number) for number in range(run.episodes_per_update)]
        played_by = max(0, update - run.max_lag)
        episodes = play(
            environment, policy, versions[0], run.seed, tickets, slots=len(tickets), version=played_by
        )
        trainer.train(list(episodes))
        versions.append(trainer.policy_arrays())
    return policy, versions[-1]


def evaluate(
    environment: EnvironmentSpec, policy: PolicySpec, weights: Arrays, seed: int, episodes: int
) -> list[float]:
    """Return the mean return of each cell, over so many fresh episodes played greedily."""
    from rollout_worker.rollout import play

    cells = cage2_cells(RunConfig().red_agents)
    spec = replace(environment, evaluate_scenarios=tuple({**cell, "greedy": True} for cell in cells))
    tickets = [Ticket("evaluate", number) for number in range(episodes * len(cells))]
    returns: list[list[float]] = [[] for _ in cells]
    for episode in play(spec, policy, weights, EVALUATION_SEED + seed, tickets, slots=SLOTS):
        returns[episode.ticket.number % len(cells)].append(episode.undiscounted_return)
    return [float(np.mean(values)) for values in returns]


def carry_out(training: Training) -> Result:
    """Train and evaluate, in a process with one thread."""
    import torch

    torch.set_num_threads(1)
    began = time.perf_counter()
    run = run_config(training)
    environment = environment_spec(run)
    policy, weights = train(run, environment)
    returns = evaluate(environment, policy, weights, training.seed, training.episodes)
    return Result(training, returns, time.perf_counter() - began)


def table(results: Sequence[Result], variants: Sequence[str]) -> str:
    """Return the means over seeds ± their standard errors as a markdown table."""
    cells = cage2_cells(RunConfig().red_agents)
    heads = [f"{str(cell['red_agent']).capitalize()} {cell['episode_length']}" for cell in cells]
    lines = [f"| variant | {' | '.join(heads)} | total |", f"|---|{'--:|' * (len(heads) + 1)}"]
    for variant in variants:
        rows = np.array([result.returns for result in results if result.training.variant == variant])
        if len(rows):
            columns = np.column_stack((rows, rows.sum(axis=1))).T
            lines.append(f"| {variant} | {' | '.join(_spell(column.tolist()) for column in columns)} |")
    return "\n".join(lines)


def _spell(values: list[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.2f}"
    return f"{np.mean(values):.2f} ± {np.std(values, ddof=1) / np.sqrt(len(values)):.2f}"


def kept(file: Path | None) -> dict[Training, Result]:
    """Return the finished trainings of a file."""
    if file is None or not file.exists():
        return {}
    found = {}
    for number, text in enumerate(file.read_text(errors="replace").splitlines(), 1):
        try:
            line = json.loads(text)
            result = Result(Training(**line["training"]), line["returns"], line["seconds"])
        except (ValueError, TypeError, KeyError) as error:
            raise typer.BadParameter(f"line {number} of {file} is no finished training: remove it") from error
        found[result.training] = result
    return found


def carried_out(trainings: Sequence[Training], processes: int) -> Iterator[Result]:
    """Yield the results of trainings as they end, some at a time, in processes that end with this one."""
    spawn, parent = get_context("spawn"), (os.getpid(),)
    pool = ProcessPoolExecutor(processes, spawn, initializer=die_with, initargs=parent)
    for future in as_completed([pool.submit(carry_out, training) for training in trainings]):
        yield future.result()
    pool.shutdown()


def main(
    variants: Annotated[str, typer.Option(help="Of these, by commas.")] = ",".join(VARIANTS),
    seeds: Annotated[str, typer.Option(help="One training of each variant for each, by commas.")] = "1,2,3",
    updates: Annotated[int, typer.Option(help="Updates of a training, about 40,000 steps each.")] = 250,
    episodes: Annotated[int, typer.Option(help="Evaluation episodes of each cell.")] = 1000,
    processes: Annotated[int, typer.Option(help="Trainings at a time, a core each.")] = 2,
    json_file: Annotated[Path | None, typer.Option("--json", help="Keep finished trainings here.")] = None,
) -> None:
    """Train, evaluate and print the table."""
    names = variants.split(",")
    if unknown := set(names) - VARIANTS.keys():
        raise typer.BadParameter(f"unknown {', '.join(sorted(unknown))}: there are {', '.join(VARIANTS)}")
    if wrong := [seed for seed in seeds.split(",") if not seed.isdecimal()]:
        raise typer.BadParameter(f"seeds are whole numbers joined by commas, not {wrong[0]!r}")
    wanted = [Training(name, int(seed), updates, episodes) for seed in seeds.split(",") for name in names]
    results = {training: result for training, result in kept(json_file).items() if training in wanted}
    os.environ |= SINGLE_THREADED  # read by the numerical libraries of the new processes
    missing = [training for training in wanted if training not in results]
    try:
        for result in carried_out(missing, processes):
            results[result.training] = result
            returns = " ".join(f"{value:.2f}" for value in result.returns)
            name, seed = result.training.variant, result.training.seed
            typer.echo(f"{name:24} seed {seed:3} {result.seconds:7.0f} s  {returns}", err=True)
            if json_file:
                with json_file.open("a") as file:
                    file.write(json.dumps(asdict(result)) + "\n")
    except KeyboardInterrupt:
        typer.echo(f"stopped; {len(results)} of {len(wanted)} trainings are finished", err=True)
        os._exit(130)  # the pool would wait for those under way; they end with this process
    typer.echo(table(list(results.values()), names))


if __name__ == "__main__":
    typer.run(main)
