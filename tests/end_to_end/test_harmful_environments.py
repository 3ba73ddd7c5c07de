"""An environment that hangs, or ends its process, costs its worker's life and nothing else."""

from __future__ import annotations

import pytest

from tests.end_to_end.fleet_processes import Fleet

HARMFUL = """
import contextlib, os, time
import gymnasium
from gymnasium.envs.classic_control import CartPoleEnv

HARMS = {"hang": (1, lambda: time.sleep(1e6)), "exit": (4, lambda: os._exit(0))}

class Harmful(CartPoleEnv):
    steps = 0

    def __init__(self, harm, **options):
        super().__init__(**options)
        self.times, self.harm = HARMS[harm]

    def step(self, action):
        Harmful.steps += 1
        if Harmful.steps == 200:  # the probe passes
            for time in range(self.times):
                with contextlib.suppress(FileExistsError):
                    os.close(os.open(f"harm-{time}", os.O_CREAT | os.O_EXCL))
                    self.harm()
        return super().step(action)

gymnasium.register("Harmful-v0", Harmful, max_episode_steps=50)
"""
ENDS = {"hang": (1, 1), "exit": (4, 0)}
"""Number, where quick more than a worker may have in vain, and exit status."""


@pytest.mark.parametrize("harm", ENDS)
def test_the_only_worker_is_replaced_and_the_run_is_whole(fleet: Fleet, harm: str) -> None:
    (fleet.folder / "harmful.py").write_text(HARMFUL)
    few = ("--workers", 1, "--n-envs", 4, "--episodes-per-update", 20, "--total-episodes", 100)
    wanted = ("--env", "Harmful-v0", "--allow-env", "harmful", "--env-option", f"harm={harm}")
    quick = ("--stuck-after-seconds", 2, "--heartbeat-seconds", 0.25, "--liveness-seconds", 2)
    given = ("--name", "run", *few, *wanted, *quick, "--evaluation-episodes", 0)
    output = fleet.run("train", *given, PYTHONPATH=str(fleet.folder), COLUMNS="200")
    times, status = ENDS[harm]
    assert output.count(f"worker 0 ended with status {status}") == times, output
    train = fleet.json("ledger", "run")["train"]
    assert sum(stop - start for start, stop in train["consumed"]) == 100
    assert not train["discarded"]
