"""The learner dies by SIGKILL at each weak moment, one after the other: the run is as if it had not."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import zmq

from protocol.sockets.learner import bind_learner
from tests.end_to_end.fleet_processes import Argument, Fleet

UPDATES, BATCH, SLOTS = 24, 12, 6
RUN: tuple[Argument, ...] = (
    *("--env", "CartPole-v1", "--n-envs", SLOTS, "--episodes-per-update", BATCH, "--hidden", 16),
    *("--total-episodes", UPDATES * BATCH, "--episode-length", 20, "--epochs", 2, "--checkpoint-every", 3),
    *("--keep-checkpoints", 2, "--evaluation-episodes", 100, "--selection-episodes", 10, "--seed", 3),
)
MODES: dict[str, tuple[Argument, ...]] = {"exact": ("--lag", "exact:1"), "sync": ("--mode", "sync")}
FOLDER = "learner.run_folder:RunFolder."
MOMENTS = {
    "no incarnation yet": ("learner.run_folder:replace_file", "before", 1),
    "no config.toml yet": (FOLDER + "write_address", "after", 1),
    "no checkpoint yet": (FOLDER + "append_update", "after", 2),
    "journalled, not published": (FOLDER + "append_update", "after", 5),
    "half a checkpoint": ("learner.checkpoints:_write", "after", 1),
    "trained, not journalled": (FOLDER + "append_update", "before", 2),
    "a checkpoint's draft": ("learner.checkpoints:_write", "after", 4),
    "published, not in the metrics": ("learner.collector:Collector.publish", "after", 3),
    "a checkpoint too many": ("learner.run:prune", "before", 2),
    "amid an evaluation": ("learner.collector:Collector.next_evaluation", "after", 2),
    "evaluated": ("learner.selection:Selection.final", "after", 1),
    "the last checkpoint aside": ("pathlib:Path.rename", "after", 1),
}
OF_SYNC = (
    "journalled, not published",
    "half a checkpoint",
    "amid an evaluation",
    "the last checkpoint aside",
)
"""What differs there, beside what is slowest to be found otherwise."""
Death = tuple[str, str, int]


def deaths(mode: str) -> list[Death]:
    if mode == "exact":
        return list(MOMENTS.values())
    return [
        (MOMENTS[name][0].replace("collector:", "synchronous:Synchronous"), *MOMENTS[name][1:])
        for name in OF_SYNC
    ]


@pytest.fixture(scope="module")
def quiet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that gives the hash of a run without faults."""
    fleet = Fleet(tmp_path_factory.mktemp("quiet"))

    def results(mode: str) -> str:
        port = free_port()
        worker = fleet.worker(port, SLOTS)
        live_on(fleet, mode, port, [])
        fleet.finish(worker)
        return fleet.run("hash", mode)

    yield results
    fleet.close()


def free_port() -> int:
    with zmq.Context() as context, bind_learner(context, "127.0.0.1", None) as learner:
        return learner.ports.control


def live_on(fleet: Fleet, mode: str, port: int, deaths: list[Death]) -> None:
    """Train through all these deaths and to the end."""
    begin = ("learner", "--name", mode, *RUN, *MODES[mode], "--port", port)
    plan = {
        "run": f"runs/{mode}",
        "begin": list(map(str, begin)),
        "resume": ["learner", "--resume", mode, "--port", str(port)],
        "deaths": deaths,
    }
    (fleet.folder / "plan.json").write_text(json.dumps(plan))
    command = [sys.executable, "-m", "tests.faults.lives", "plan.json"]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(command, cwd=fleet.folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", MODES)
def test_a_run_of_many_lives_is_the_run_of_one(fleet: Fleet, quiet: Any, mode: str) -> None:
    port = free_port()
    workers = [fleet.worker(port, SLOTS) for _ in range(2)]
    live_on(fleet, mode, port, deaths(mode))
    fleet.finish_survivors(workers)
    assert fleet.run("hash", mode) == quiet(mode)
    assert (fleet.folder / "runs" / mode / "evaluation.json").exists()
    ledger = fleet.json("ledger", mode)
    assert ledger["train"]["consumed"] == [[0, UPDATES * BATCH]] and not ledger["violations"]
    assert ledger["undone"] == rolled_back(fleet, mode)
    metrics = (fleet.folder / "runs" / mode / "metrics.csv").read_text().splitlines()
    assert [int(row.split(",")[0]) for row in metrics[1:]] == list(range(1, UPDATES + 1))
    left = {path.name for path in (fleet.folder / "runs" / mode / "checkpoints").iterdir()}
    assert {f"update-{update:05d}" for update in (UPDATES - 3, UPDATES)} <= left and len(left) <= 3


def rolled_back(fleet: Fleet, mode: str) -> list[dict[str, Any]]:
    """Recount, from the journal alone, what was consumed by updates that a later life did again."""
    lines = (fleet.folder / "runs" / mode / "updates.jsonl").read_text().splitlines()
    records = [json.loads(line) for line in lines]
    last = {record["update"]: record["incarnation"] for record in records}
    undone: dict[int, list[dict[str, Any]]] = {}
    for record in records:
        if last[record["update"]] != record["incarnation"]:
            undone.setdefault(record["incarnation"], []).append(record)
    return [
        {
            "incarnation": incarnation,
            "updates": [lost[0]["update"], lost[-1]["update"]],
            "tickets": [[lost[0]["consumed"][0][0], lost[-1]["consumed"][0][1]]],
        }
        for incarnation, lost in undone.items()
    ]
