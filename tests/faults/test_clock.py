"""A clock that jumps changes nothing: no decision asks it."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.end_to_end.fleet_processes import Fleet

ROOT = Path(__file__).parents[2]
FOR_THE_EYE = {
    "learner/metrics.py": "the time beside a point in TensorBoard",
    "learner/queries.py": "the learner's clock in a report, which fleet doctor compares",
    "learner/step_record.py": "when a recording began",
    "deploy/runs.py": "the date in the name of a run",
}
WALL_CLOCKS = {"time", "time_ns", "localtime", "gmtime", "ctime", "strftime"}
JUMPING = """
import random, sys, time
real, jumps = time.time, random.Random(1)
time.time = lambda: real() + jumps.uniform(-1e7, 1e7)
from deploy.app import run_command
sys.exit(run_command(sys.argv[1:]))
"""


def asks_wall_clock(tree: ast.AST) -> bool:
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(value=ast.Name(id="time"), attr=name) if name in WALL_CLOCKS:
                return True
            case ast.ImportFrom(module="time", names=names) if {n.name for n in names} & WALL_CLOCKS:
                return True
            case ast.Import(names=names) if any(n.name == "datetime" for n in names):
                return True
            case ast.ImportFrom(module="datetime"):
                return True
    return False


def test_only_what_is_for_the_eye_asks_the_wall_clock() -> None:
    files = [
        file for part in ("protocol", "rollout_worker", "learner") for file in (ROOT / part).rglob("*.py")
    ]
    files += [ROOT / "deploy" / name for name in ("run.py", "runs.py", "local.py", "query.py")]
    files.append(ROOT / "deploy" / "commands" / "worker.py")
    asking = {str(file.relative_to(ROOT)) for file in files if asks_wall_clock(ast.parse(file.read_text()))}
    assert len(files) > 50 and asking == set(FOR_THE_EYE)


@pytest.mark.timeout(400)
def test_a_learner_whose_clock_jumps_trains_to_the_same_bits(fleet: Fleet) -> None:
    """By up to four months either way, at each look at it."""
    run = (
        *("train", "--env", "CartPole-v1", "--n-envs", "6", "--workers", "1", "--episodes-per-update", "12"),
        *("--total-episodes", "240", "--episode-length", "20", "--hidden", "16", "--lag", "exact:1"),
        *("--evaluation-episodes", "0", "--selection-episodes", "0", "--checkpoint-every", "3"),
    )
    jumped = subprocess.run(
        [sys.executable, "-c", JUMPING, *run, "--name", "jumped"],
        cwd=fleet.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert jumped.returncode == 0, jumped.stderr
    assert "is lost" not in (fleet.folder / "runs" / "jumped" / "logs" / "learner.log").read_text()
    fleet.run(*run, "--name", "quiet")
    assert fleet.run("hash", "jumped") == fleet.run("hash", "quiet")
