"""Any Gymnasium environment trains through the whole fleet, and one that fails stops nobody else."""

from __future__ import annotations

import csv

from tests.end_to_end.fleet_processes import Argument, Fleet

STEP_BUDGET = 200_000
CARTPOLE: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--workers", 2, "--n-envs", 20, "--episodes-per-update", 20, "--seed", 3),
    *("--total-episodes", 500, "--activation", "tanh", "--learning-rate", 3e-3, "--minibatch-steps", 256),
    *("--final-learning-rate", 3e-4, "--epochs", 6, "--entropy", 0.005, "--final-entropy", 0),
    *("--reward-scale", 0.05, "--evaluation-episodes", 100, "--lag", "exact:1"),
)

FRAGILE = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Fragile(CartPoleEnv):
    def reset(self, *, seed=None, options=None):
        self.doomed = seed is not None and seed % 10 == 3
        return super().reset(seed=seed, options=options)

    def step(self, action):
        if self.doomed:
            raise RuntimeError("a wheel came off")
        return super().step(action)

gymnasium.register("Fragile-v0", Fragile, max_episode_steps=50)
"""


def test_cartpole_learns_to_balance(fleet: Fleet) -> None:
    table = fleet.json("train", "--name", "run", *CARTPOLE)
    (greedy,), (sampled,) = table["returns"], table["sampled_returns"]
    with (fleet.folder / "runs" / "run" / "metrics.csv").open() as file:
        steps = sum(float(row["steps"]) for row in csv.DictReader(file))
    assert greedy["greedy"] and not sampled["greedy"]
    for cell in (sampled, greedy):
        assert cell["episodes"] == 100
        assert cell["mean"] >= 475
    assert steps <= STEP_BUDGET


def test_an_environment_that_raises_costs_its_tickets_only(fleet: Fleet) -> None:
    """A ticket whose environment raises is issued three times, then discarded with its reason."""
    (fleet.folder / "fragile.py").write_text(FRAGILE)
    few = ("--workers", 2, "--n-envs", 8, "--episodes-per-update", 20, "--total-episodes", 200)
    wanted = ("--env", "Fragile-v0", "--allow-env", "fragile", "--evaluation-episodes", 0)
    fleet.run("train", "--name", "run", *few, *wanted, PYTHONPATH=str(fleet.folder))
    train = fleet.json("ledger", "run")["train"]
    assert sum(stop - start for start, stop in train["consumed"]) == 200
    (reason,) = train["discarded"]
    assert "a wheel came off" in reason
