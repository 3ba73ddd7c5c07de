"""Time the whole asynchronous loop: `python benchmarks/training.py [--json FILE] [-- OPTIONS OF TRAIN]`.

Runs `fleet train` on the embedded CAGE-2 with its defaults, learner and workers together on this machine, and
says how many environment steps per second it trained on and where the learner's time went.
"""

from __future__ import annotations

import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Annotated

import typer

from learner.config import RunConfig
from learner.metrics import Row, read_metrics

WARM_UP_UPDATES = 5


def train(folder: Path, updates: int, options: list[str]) -> list[Row]:
    """Run `fleet train` in `folder`; return the rows of its metrics."""
    episodes = ["--total-episodes", str(updates * RunConfig().episodes_per_update)]
    command = [
        str(Path(sys.executable).with_name("fleet")),
        "train",
        "--name",
        "run",
        "--evaluation-episodes",
        "0",
    ]
    subprocess.run([*command, *episodes, *options], cwd=folder, check=True)
    return read_metrics(folder / "runs" / "run" / "metrics.csv")


def summary(rows: list[Row]) -> dict[str, float]:
    """Return the figures of the updates after the warm-up: rates over all of them, seconds as medians."""
    measured = rows[WARM_UP_UPDATES:]
    seconds = float(measured[-1]["seconds"]) - float(rows[WARM_UP_UPDATES - 1]["seconds"])

    def median(name: str) -> float:
        return statistics.median(float(row[name]) for row in measured)

    def total(name: str) -> float:
        return sum(float(row[name]) for row in measured)

    accounted = total("wait_seconds") + total("update_seconds")
    return {
        "updates": len(measured),
        "steps_per_second": total("steps") / seconds,
        "episodes_per_second": total("episodes") / seconds,
        "gradient_steps_per_update": median("gradient_steps"),
        "gradient_steps_per_second": total("gradient_steps") / seconds,
        "seconds_per_update": seconds / len(measured),
        "share_waiting_for_episodes": total("wait_seconds") / seconds,
        "share_batching": total("batch_seconds") / seconds,
        "share_evaluating_batch": total("evaluate_seconds") / seconds,
        "share_gradient_steps": total("optimise_seconds") / seconds,
        "share_publishing_and_files": 1 - accounted / seconds,
        "lag_mean": total("lag_mean") / len(measured),
    }


def main(
    options: Annotated[list[str] | None, typer.Argument(help="Options of `fleet train`, after --.")] = None,
    updates: Annotated[int, typer.Option(help="Updates to measure.")] = 60,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the figures here too.")] = None,
) -> None:
    """Measure and print."""
    with tempfile.TemporaryDirectory() as folder:
        began = time.monotonic()
        rows = train(Path(folder), updates + WARM_UP_UPDATES, options or [])
        wall = time.monotonic() - began
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    figures = summary(rows) | {
        "wall_seconds_with_start": wall,
        "cpu_seconds_of_all_processes": used.ru_utime + used.ru_stime,
    }
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):34}{value:>14,.3f}")
    if json_file:
        json_file.write_text(json.dumps(figures, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
