"""`--lag exact:1`: the same bits whatever the number of workers and whoever is killed on the way."""

from __future__ import annotations

import csv
import subprocess
from typing import Any

import pytest

from tests.end_to_end.fleet_processes import Fleet

UPDATES, BATCH = 20, 80
RUN = (
    *("--lag", "exact:1", "--total-episodes", UPDATES * BATCH, "--episodes-per-update", BATCH),
    *("--episode-length", 30, "--minibatch-steps", 800, "--epochs", 8, "--evaluation-episodes", 0),
    *("--seed", 7, "--liveness-seconds", 2),
)


def train(fleet: Fleet, name: str, workers: int, killed: bool = False) -> tuple[str, dict[int, int]]:
    """Return the hash of a run with so many workers, and the episodes that each of them played, by pid."""
    learner, port = fleet.learner(*RUN, name=name)
    for _ in range(workers):
        fleet.worker(port)
    played: dict[int, int] = {}
    victim: subprocess.Popen[str] | None = None
    while learner.poll() is None:
        status = fleet.status(port)
        if status is None:
            continue
        played |= {worker["pid"]: worker["episodes"] for worker in status["workers"]}
        if killed and victim is None:
            victim = kill_one_that_plays(fleet, status)
    fleet.finish(learner)
    assert victim is not None or not killed, "the run was over before a worker could be killed"
    assert ledger(fleet, name)["train"]["consumed"] == [[0, UPDATES * BATCH]]
    return fleet.run("hash", name).strip(), played


def kill_one_that_plays(fleet: Fleet, status: dict[str, Any]) -> subprocess.Popen[str] | None:
    """Kill a worker that holds running tickets in the middle of the run; None if there is none now."""
    for worker in status["workers"]:
        if worker["running"] and 5 <= status["version"] <= UPDATES - 5:
            victim = next(process for process in fleet.processes if process.pid == worker["pid"])
            victim.kill()
            return victim
    return None


def ledger(fleet: Fleet, name: str) -> dict[str, Any]:
    return fleet.json("ledger", name)


def overlapped(fleet: Fleet, name: str) -> int:
    """Return in how many updates episodes arrived that were begun under the weights that it began with."""
    with (fleet.folder / "runs" / name / "metrics.csv").open() as file:
        return sum(float(row["episodes_during_update"]) > 0 for row in csv.DictReader(file))


@pytest.mark.timeout(400)
def test_workers_and_kills_do_not_change_a_bit(fleet: Fleet) -> None:
    alone, _ = train(fleet, "alone", 1)
    assert overlapped(fleet, "alone") > UPDATES // 2, "play and training did not overlap"
    for workers in (2, 3):
        digest, played = train(fleet, f"with-{workers}", workers)
        assert digest == alone
        assert len(played) == workers
        assert min(played.values()) >= UPDATES * BATCH / 10
    digest, _ = train(fleet, "killed", 3, killed=True)
    assert digest == alone


LEAKY = """
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

class Leaky(CartPoleEnv):
    wear = 0.0

    def step(self, action):
        self.wear += 1e-6
        observation, reward, terminated, truncated, info = super().step(action)
        return observation, reward - self.wear, terminated, truncated, info

gymnasium.register("Leaky-v0", Leaky, max_episode_steps=50)
"""


def test_an_environment_that_does_not_reset_fully_stops_the_run(fleet: Fleet) -> None:
    (fleet.folder / "leaky.py").write_text(LEAKY)
    wanted = (
        "--env",
        "Leaky-v0",
        "--allow-env",
        "leaky",
        "--total-episodes",
        4000,
        "--evaluation-episodes",
        0,
    )
    few = ("--workers", 2, "--n-envs", 8, "--episodes-per-update", 20, "--lag", "exact:1")
    output = fleet.run("train", "--name", "run", *few, *wanted, PYTHONPATH=str(fleet.folder), status=1)
    assert "ticket train:0 differs at step 1 when played again" in output.splitlines()[-1]
    assert output.count("the environment does not reset fully") == 1
