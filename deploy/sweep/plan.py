"""What a sweep is told, and the folder that keeps it.

runs/SWEEP/
    sweep.json           how it searches
    space.toml           the space, as it was given
    base.toml            the options of every training, as `fleet train --config` takes them
    sweep.lock           held by the sweep at work
    journal.log          optuna's storage: every trial, its values and evaluations
    trials/              trial-0000-seed-1000000000.toml and .log: what each training was told and said
    runs/                the trainings' own folders, of the same names
    results.csv, best.toml
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal, get_args

from deploy.settings import Settings, resolve, to_toml
from deploy.sweep.score import Objective
from deploy.sweep.space import Space, Value, check_space, parse_space
from learner.config import Range, check_ranges
from learner.run_folder import replace_file
from protocol.errors import UserError

FIRST_SEED, SEED_STRIDE = 1_000_000_000, 2
"""Of the trainings' seeds: far from those that people give, and the next of each, which `fleet evaluate`
takes of its own accord, is none of them."""

Pruner = Literal["median", "hyperband", "none"]

_RANGES = {
    "trials": Range(1, 10**6),
    "parallel": Range(1, 1000),
    "seeds": Range(1, 1000),
    "rungs": Range(1, 1000),
    "startup_trials": Range(1, 10**6),
    "seed": Range(0, 2**32 - 2),
}


@dataclass(frozen=True, slots=True)
class Search:
    """How a sweep searches; `trials` and `parallel` may change when it goes on."""

    trials: int = 20
    parallel: int = 1
    seeds: int = 1
    objective: Objective = "worst"
    pruner: Pruner = "median"
    rungs: int = 10
    """Evaluations of each training, at equal distances, after each of which its trial may be pruned."""
    startup_trials: int = 5
    """Drawn at random, and none pruned before so many are complete."""
    seed: int = 1
    """Of the search."""

    def __post_init__(self) -> None:
        """Refuse numbers that no sweep has."""
        check_ranges(self, _RANGES)
        for name, allowed in (("objective", get_args(Objective)), ("pruner", get_args(Pruner))):
            if getattr(self, name) not in allowed:
                raise UserError(f"--{name} is {getattr(self, name)!r}: choose from {', '.join(allowed)}")

    @property
    def training_seeds(self) -> list[int]:
        """Return the seeds that every trial trains with."""
        return [FIRST_SEED + SEED_STRIDE * number for number in range(self.seeds)]


@dataclass(frozen=True, slots=True)
class Plan:
    """A sweep: its folder, its space, and the options of every training."""

    folder: Path
    search: Search
    space: Space
    base: Settings

    def settings(self, values: dict[str, Value], seed: int, cores: int) -> Settings:
        """Return what one training is told, on a machine of so many cores. Raises UserError."""
        chosen = resolve(values, self.folder / "base.toml")
        run, ppo, launch = chosen.run, chosen.ppo, chosen.launch
        run = replace(run, seed=seed, checkpoint_every=max(1, run.updates // self.search.rungs))
        if self.search.parallel > 1:
            share = min(max(1, cores // self.search.parallel), run.n_envs)
            launch = replace(launch, workers=launch.workers or share)
            ppo = replace(ppo, torch_threads=ppo.torch_threads or 1)
        return Settings(run, ppo, launch)


def write_plan(plan: Plan, space: str, file: Path) -> None:
    """Keep a new plan, whose space is the text of `file`. Raises UserError where a value is not allowed."""
    replace_file(plan.folder / "space.toml", space)
    replace_file(plan.folder / "base.toml", to_toml(plan.base))
    check_space(plan.space, plan.folder / "base.toml", file)
    write_search(plan)


def write_search(plan: Plan) -> None:
    """Keep how a sweep searches."""
    replace_file(plan.folder / "sweep.json", json.dumps(asdict(plan.search), indent=1) + "\n")


def read_plan(folder: Path) -> Plan:
    """Return the plan of a sweep's folder. Raises UserError where it is damaged."""
    space, base, file = folder / "space.toml", folder / "base.toml", folder / "sweep.json"
    try:
        search = Search(**json.loads(file.read_text()))
        return Plan(folder, search, parse_space(space.read_text(), space), resolve({}, base))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"{folder} is damaged and cannot go on: {error}") from error


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a sweep's folder, which is made if need be. Raises UserError where another sweep does."""
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder / "sweep.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            mend = "stop it, or give this one another --name"
            raise UserError(f"another sweep is at work in {folder}: {mend}") from None
        yield
    finally:
        os.close(lock)
